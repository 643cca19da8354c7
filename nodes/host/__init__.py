"""The only package that imports ComfyUI; it does so when a function is called, not when it is imported.

Inside ComfyUI the functions here use its model folders, device, progress bar, memory management, VIDEO
class and samplers. Without ComfyUI they use folders below a home directory and a terminal progress bar;
there are no samplers.
"""

from .comfyui import comfy, inside_comfyui, log, server_running
from .conditioning import FrameSlice, drop_controls, with_hints
from .folders import (
    folder,
    home,
    input_names,
    input_path,
    inside,
    limit_from,
    model_folders,
    model_names,
    model_path,
    output_path,
    trained_path,
    trusting,
    workflow_metadata,
)
from .gradients import (
    GRAPH_SHARE,
    GraphSize,
    Recomputation,
    differentiable,
    differentiable_attention,
    gradients,
    graph_bytes,
    graph_size,
)
from .graph_key import graph_key
from .memory import (
    Managed,
    device,
    free_memory,
    is_out_of_memory,
    load_model,
    make_room,
    managed,
    offload_device,
    release_memory,
    trim_heap,
)
from .model import (
    NEUTRAL_ID,
    add_wrapper,
    compute_dtype,
    conditions,
    evaluate,
    identity,
    latent_channels,
    latent_picture,
    loaded,
    on_cleanup,
    one_per_row,
    percent_to_sigma,
    remove_wrappers,
    transformer_options,
    weights_key,
)
from .output_names import locked, numbered, remove_leftovers, temporary_path
from .progress import (
    Preview,
    Progress,
    check_interrupt,
    duration,
    executing_node,
    interrupt_types,
    progress,
    show_text,
    strict,
    warn,
)
from .sampling import Denoiser, SamplingFunction, attention, run_sampler, sample, sampler
from .vae import patched_vae, vae_patcher, vae_with_network
from .video import video_base, video_components, video_file
