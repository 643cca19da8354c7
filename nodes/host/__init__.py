"""The only package that imports ComfyUI; it does so when a function is called, not when it is imported.

Inside ComfyUI the functions here use its model folders, device, progress bar, memory management, VIDEO
class and samplers. Without ComfyUI they use folders below a home directory and a terminal progress bar;
there are no samplers.
"""

from .comfyui import comfy, inside_comfyui, log
from .folders import (
    folder,
    home,
    input_names,
    input_path,
    inside,
    keeps_metadata,
    model_folders,
    model_names,
    model_path,
    output_path,
    trained_path,
    trusting,
)
from .gradients import differentiable, gradients
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
from .output_names import numbered, temporary_path
from .progress import Preview, Progress, check_interrupt, executing_node, interrupt_types, progress
from .sampling import Denoiser, SamplingFunction, attention, sample, sampler
from .video import video_base, video_components, video_file

__all__ = [
    "Denoiser",
    "Managed",
    "Preview",
    "Progress",
    "SamplingFunction",
    "attention",
    "check_interrupt",
    "comfy",
    "device",
    "differentiable",
    "executing_node",
    "folder",
    "free_memory",
    "gradients",
    "home",
    "input_names",
    "input_path",
    "inside",
    "inside_comfyui",
    "interrupt_types",
    "is_out_of_memory",
    "keeps_metadata",
    "load_model",
    "log",
    "make_room",
    "managed",
    "model_folders",
    "model_names",
    "model_path",
    "numbered",
    "offload_device",
    "output_path",
    "progress",
    "release_memory",
    "sample",
    "sampler",
    "temporary_path",
    "trained_path",
    "trim_heap",
    "trusting",
    "video_base",
    "video_components",
    "video_file",
]
