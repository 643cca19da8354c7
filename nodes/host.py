"""The host seam: the only file of the pack that imports ComfyUI, and it does so lazily.

Inside ComfyUI the functions here answer with what ComfyUI has: model folders, the device, a progress
bar that is interruptible, memory management, the VIDEO base class, the sampler classes. Outside, they
answer with stand-ins: folders below a home directory, a terminal progress bar, no samplers.

"Inside" means that `folder_paths` is already imported: ComfyUI does that before it loads any pack.
"""

import ctypes
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.attention import attend

log = logging.getLogger("reelbrush")

# -- which host ------------------------------------------------------------------------------------


def inside_comfyui() -> bool:
    """True when this process is a ComfyUI (or a test that has imported one)."""
    return "folder_paths" in sys.modules


def comfy(name: str, what: str = "this node") -> ModuleType:
    """A module of ComfyUI; without ComfyUI, one sentence that says how to go on."""
    if not inside_comfyui():
        raise RuntimeError(
            f"{what} needs ComfyUI: load the workflow in ComfyUI, or start a ComfyUI and send the graph "
            "to it with `reelbrush render GRAPH.json --server http://127.0.0.1:8188`"
        )
    return importlib.import_module(name)


# -- folders and safe paths ------------------------------------------------------------------------

_FOLDERS = ("input", "output", "temp")
_trusted: ContextVar[tuple[Path, ...]] = ContextVar("trusted paths", default=())


def home() -> Path:
    """Outside ComfyUI: where models/, input/ and output/ are."""
    return Path(os.environ.get("REELBRUSH_HOME") or Path.cwd())


def folder(kind: str) -> Path:
    """The host's `input`, `output` or `temp` folder."""
    if kind not in _FOLDERS:
        raise ValueError(f"{kind!r} is no folder of the host: one of {', '.join(_FOLDERS)}")
    if inside_comfyui():
        paths = comfy("folder_paths")
        return Path(getattr(paths, f"get_{kind}_directory")())
    return home() / kind


@contextmanager
def trusting(paths: Iterable[str | os.PathLike]) -> Iterator[None]:
    """Let these paths through `inside`: the command line's own arguments, never a graph's."""
    token = _trusted.set(_trusted.get() + tuple(Path(p).resolve() for p in paths))
    try:
        yield
    finally:
        _trusted.reset(token)


def inside(base: Path, name: str, what: str = "file") -> Path:
    """`base / name`, refused when it leaves `base` (`..`, absolute, a link out of the folder)."""
    if "\0" in str(name):
        raise ValueError(f"the {what} name has a null character in it")
    path = (base / name).resolve()
    if path in _trusted.get() or any(p in path.parents for p in _trusted.get() if p.is_dir()):
        return path
    if not path.is_relative_to(base.resolve()):
        raise ValueError(
            f"the {what} {str(name)!r} leaves the {base.name} folder: give a name inside {base.name}/"
        )
    return base / name


def input_path(name: str, what: str = "file") -> Path:
    """A file or folder below `input/` that exists; a name from a graph is not trusted."""
    name = name.removesuffix(" [input]")
    path = inside(folder("input"), name, what)
    if not path.exists():
        raise ValueError(f"the {what} {name!r} is not in the input folder: copy it there, or choose another")
    return path


def input_names(extensions: Iterable[str] = (), *, folders: bool = False) -> list[str]:
    """Names below `input/`: files that end so, or (folders=True) sub-folders."""
    base = folder("input")
    if not base.is_dir():
        return []
    endings = tuple(extensions)
    found = (
        p
        for p in base.rglob("*")
        if p.is_dir() == folders and not any(part.startswith(".") for part in p.relative_to(base).parts)
    )
    return sorted(
        p.relative_to(base).as_posix()
        for p in found
        if folders or not endings or p.name.lower().endswith(endings)
    )


def output_path(name: str, what: str = "file") -> Path:
    """A path below `output/`, its folder made; refused when it leaves the folder."""
    path = inside(folder("output"), name, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def numbered(prefix: str, suffix: str, size: tuple[int, int] = (0, 0)) -> tuple[Path, str]:
    """The next free `prefix_00001_suffix` below `output/` as ComfyUI counts, and its sub-folder.

    `prefix` may hold %year%, %month%, %day%, %hour%, %minute%, %second%, %width%, %height%.
    """
    now = time.localtime()
    words = {"width": size[0], "height": size[1], "year": now.tm_year}
    two = {
        "month": now.tm_mon,
        "day": now.tm_mday,
        "hour": now.tm_hour,
        "minute": now.tm_min,
        "second": now.tm_sec,
    }
    words |= {key: f"{value:02}" for key, value in two.items()}
    for key, value in words.items():
        prefix = prefix.replace(f"%{key}%", str(value))
    if not Path(prefix).name:
        raise ValueError("filename_prefix is empty: give the file a name")
    first = output_path(prefix, "filename_prefix")
    stem = first.name + "_"
    names = (p.name.removeprefix(".") for p in first.parent.glob("*"))  # what is being written has a dot
    taken = (name.removeprefix(stem).split("_")[0] for name in names if name.startswith(stem))
    counter = max((int(t) for t in taken if t.isdecimal()), default=0) + 1
    sub = Path(prefix).parent.as_posix()
    return first.parent / f"{stem}{counter:05}_{suffix}", "" if sub == "." else sub


def model_folders(kind: str) -> list[Path]:
    """Where models of a kind live, the host's folders first; `output/<kind>` holds what was trained here."""
    own = folder("output") / kind
    if not inside_comfyui():
        return [home() / "models" / kind, own]
    paths = comfy("folder_paths")
    if kind not in paths.folder_names_and_paths:
        paths.add_model_folder_path(kind, os.path.join(paths.models_dir, kind))
        paths.add_model_folder_path(kind, str(own))
    found = [Path(p) for p in paths.get_folder_paths(kind)]
    return found if own in found else [*found, own]


def model_names(
    kind: str, extensions: Iterable[str] = (".safetensors",), *, folders: bool = False
) -> list[str]:
    """Files (and sub-folders, when asked for) that a loader of this kind lists."""
    names: list[str] = []
    for base in model_folders(kind):
        if not base.is_dir():
            continue
        for path in sorted(base.rglob("*")):
            name = path.relative_to(base).as_posix()
            if any(part.startswith(".") for part in Path(name).parts):
                continue
            if (path.is_dir() and folders) or (
                path.is_file() and path.name.lower().endswith(tuple(extensions))
            ):
                names.append(name)
    return list(dict.fromkeys(names))


def model_path(kind: str, name: str) -> Path:
    """The first folder of a kind that holds `name`; a sentence where none does."""
    bases = model_folders(kind)
    for base in bases:
        link = Path(os.path.normpath(base / name))  # people link models here from elsewhere
        path = link if link.is_relative_to(base) else inside(base, name, f"{kind} model")
        if path.exists():
            return path
    raise ValueError(f"the {kind} model {name!r} was not found: put it into {bases[0].parent.name}/{kind}/")


def trained_path(kind: str, name: str, what: str = "save_as") -> Path:
    """A file below `output/<kind>/`, which the host's own loaders of that kind list."""
    base = folder("output") / kind
    if inside_comfyui():
        comfy("folder_paths").add_model_folder_path(kind, str(base))
    return inside(base, name, what)


def keeps_metadata() -> bool:
    """False when the person told ComfyUI not to put workflows into files."""
    return not (inside_comfyui() and comfy("comfy.cli_args").args.disable_metadata)


# -- progress and interruption ---------------------------------------------------------------------


def interrupt_types() -> tuple[type[BaseException], ...]:
    """What a cancelled run raises here. Never swallow it."""
    if inside_comfyui():
        return (comfy("comfy.model_management").InterruptProcessingException, KeyboardInterrupt)
    return (KeyboardInterrupt,)


def check_interrupt() -> None:
    """Raise the host's interrupt exception if the person has cancelled."""
    if inside_comfyui():
        comfy("comfy.model_management").throw_exception_if_processing_interrupted()


Preview = Tensor | Callable[[], Tensor] | None
"""A picture of what is being made, or how to get one: it is asked for only when it will be shown."""


class Progress:
    """A bar that a person sees: ComfyUI's (which raises when cancelled), or one line on a terminal."""

    def __init__(self, total: int, label: str, unit: str):
        self.total, self.label, self.unit, self.done = max(int(total), 1), label, unit, 0
        self._start = self._shown = time.monotonic()
        self._pictured = 0.0
        self._bar = comfy("comfy.utils").ProgressBar(self.total) if inside_comfyui() else None

    def step(self, n: int = 1, preview: Preview = None) -> None:
        """`n` more are done; `preview` is one picture [H, W, 3] in 0..1 of what is being made."""
        self.at(self.done + n, preview)

    def at(self, done: int, preview: Preview = None) -> None:
        """`done` in all are done."""
        self.done = done
        if self._bar is not None:
            check_interrupt()
            self._bar.update_absolute(done, self.total, self._picture(preview))
        elif sys.stderr.isatty():
            self._line()

    def _picture(self, preview: Preview) -> tuple[str, Any, int] | None:
        """ComfyUI's form of a preview, twice a second at most."""
        now = time.monotonic()
        if preview is None or now - self._pictured < 0.5:
            return None
        self._pictured = now
        picture = preview() if callable(preview) else preview
        pixels = picture.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8).numpy()
        image = importlib.import_module("PIL.Image")  # ComfyUI has Pillow; the pack alone does not need it
        return ("JPEG", image.fromarray(pixels), 512)

    def _line(self) -> None:
        now = time.monotonic()
        if self.done < self.total and now - self._shown < 0.2:
            return
        self._shown = now
        rate = self.done / max(now - self._start, 1e-6)
        left = (self.total - self.done) / rate if rate > 0 else 0
        sys.stderr.write(
            f"\r{self.label or 'working'}: {self.done}/{self.total} {self.unit}, "
            f"{rate:.1f}/s, {int(left // 60)}:{int(left % 60):02} left\033[K"
        )
        sys.stderr.flush()

    def close(self) -> None:
        if self._bar is None and sys.stderr.isatty() and self.done:
            sys.stderr.write("\n")


@contextmanager
def progress(total: int, label: str = "", unit: str = "frames") -> Iterator[Progress]:
    """`with progress(len(frames), "Stylizing") as bar: ... bar.step()`. Interruptible at every step."""
    bar = Progress(total, label, unit)
    try:
        yield bar
    finally:
        bar.close()


def executing_node() -> Any:
    """The context of the running node, to carry to a worker thread or a late run; None outside ComfyUI."""
    if not inside_comfyui():
        return None
    try:
        return comfy("comfy_execution.utils").get_executing_context()
    except ImportError:  # hosts before node contexts
        return None


def as_node(context: Any):
    """Re-enter a node's context, in another thread too: `with as_node(context): ...`."""
    if context is None:
        return nullcontext()
    return comfy("comfy_execution.utils").CurrentNodeContext(
        context.prompt_id, context.node_id, context.list_index
    )


# -- device and memory -----------------------------------------------------------------------------


def device() -> torch.device:
    """Where computing happens."""
    if inside_comfyui():
        return comfy("comfy.model_management").get_torch_device()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def offload_device() -> torch.device:
    """Where our own networks rest."""
    if inside_comfyui():
        return comfy("comfy.model_management").unet_offload_device()
    return torch.device("cpu")


def free_memory(where: torch.device | None = None) -> int:
    """Bytes that may be used on a device now."""
    where = where or device()
    if inside_comfyui():
        return int(comfy("comfy.model_management").get_free_memory(where))
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    try:  # what the page cache holds counts as free
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) << 10
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 << 30


def make_room(size: int) -> None:
    """Ask the host to unload what it can until `size` bytes are free on the computing device."""
    if inside_comfyui():
        comfy("comfy.model_management").free_memory(size, device())


def release_memory() -> None:
    """Give cached device memory back, after an out-of-memory error or a clean-up."""
    if inside_comfyui():
        comfy("comfy.model_management").soft_empty_cache()
    elif torch.cuda.is_available():
        torch.cuda.empty_cache()


_trimmed = 0.0  # when the heap last was


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes = (ctypes.c_size_t,)
        return trim
    except (OSError, AttributeError, TypeError):  # no glibc
        return None


def trim_heap(pause: float = 0.0) -> None:
    """Give back to the system what the C allocator holds and nobody uses; at most once in `pause` seconds.

    Frames come and go on several threads, and glibc keeps the holes between them as the process's own: more
    of them the longer a clip is, and all of them after it. Other allocators look after themselves.
    """
    global _trimmed
    now, trim = time.monotonic(), _malloc_trim()
    if trim is not None and now - _trimmed >= pause:
        trim(0)
        _trimmed = time.monotonic()


def is_out_of_memory(error: BaseException) -> bool:
    """True for a device's out-of-memory error, and for the CPU allocator's."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Managed:
    """A network of our own under the host's memory management; it is loaded when it is used, not before."""

    def __init__(self, module: nn.Module):
        self.module = module.train(False)
        self._patcher: Any = None

    def load(self) -> nn.Module:
        """The module on the computing device."""
        if not inside_comfyui():
            return self.module.to(device())
        management = comfy("comfy.model_management")
        if self._patcher is None:
            self._patcher = comfy("comfy.model_patcher").ModelPatcher(self.module, device(), offload_device())
        management.load_models_gpu([self._patcher])
        return self.module


def managed(module: nn.Module) -> Managed:
    """Put a network under the host's memory management."""
    return Managed(module)


# -- the diffusion model ---------------------------------------------------------------------------


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, precision: Any, options: dict
) -> Tensor:
    """The host's attention of the day on [B, N, heads * d]: its precision rule (SD2 computes in float32), its
    backend, and overrides in `transformer_options` included."""
    if inside_comfyui():
        core = comfy("comfy.ldm.modules.attention")
        if mask is None:
            return core.optimized_attention(
                q, k, v, heads, attn_precision=precision, transformer_options=options
            )
        return core.optimized_attention_masked(
            q, k, v, heads, mask, attn_precision=precision, transformer_options=options
        )
    split = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)]
    return attend(*split, mask if mask is None else mask[:, None]).transpose(1, 2).flatten(2)


def load_model(model: Any) -> None:
    """A MODEL onto the computing device, as a sampler does it."""
    if inside_comfyui():
        comfy("comfy.model_management").load_models_gpu([model])


# -- sampling --------------------------------------------------------------------------------------


class Denoiser:
    """What a sampling function is given: the loaded model under its guider, conditionings prepared.

    `denoise(x, sigma)` answers x0 with guidance; `denoise.predict(x, sigma, "negative")` one side without
    it, with another text where `context` is given; both take x [N, C, h, w] in model space and one sigma.
    """

    def __init__(self, model_k: Any, extra_args: dict, callback: Callable | None, steps: int):
        self._model, self._extra, self._callback, self._steps = model_k, extra_args, callback, steps

    @property
    def guider(self) -> Any:
        """ComfyUI's guider; its `inner_model` is the loaded BaseModel, its `conds` the prepared texts."""
        return self._model.inner_model

    @property
    def model(self) -> nn.Module:
        """The loaded BaseModel: `apply_model`, `diffusion_model`, `model_sampling`."""
        return self.guider.inner_model

    @property
    def options(self) -> dict:
        """`model_options` of this run: copy its `transformer_options` to call the model itself."""
        return self._extra["model_options"]

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self._model(x, self._rows(x, sigma), **self._extra)

    def predict(
        self, x: Tensor, sigma: Tensor | float, side: str = "positive", context: Tensor | None = None
    ) -> Tensor:
        """x0 as one side's text alone says."""
        conds = self.guider.conds[side]
        if context is not None:
            conds = [self._with_context(c, context) for c in conds]
        return self._batch(conds, x, self._rows(x, sigma))

    def step(self, index: int, x: Tensor, denoised: Tensor, total: int | None = None) -> None:
        """Step `index` is done: the progress bar, the preview, and the place where a cancelled run stops."""
        check_interrupt()
        if self._callback is not None:
            self._callback(index, denoised.detach(), x.detach(), total or self._steps)

    @staticmethod
    def _rows(x: Tensor, sigma: Tensor | float) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        return torch.as_tensor(sigma, dtype=exact, device=x.device).reshape(-1).expand(len(x)).clone()

    @staticmethod
    def _with_context(cond: dict, context: Tensor) -> dict:
        text = comfy("comfy.conds").CONDCrossAttn(context)
        return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": text}}

    def _batch(self, conds: list[dict], x: Tensor, sigma: Tensor) -> Tensor:
        return comfy("comfy.samplers").calc_cond_batch(self.model, [conds], x, sigma, self.options)[0]


SamplingFunction = Callable[[Denoiser, Tensor, Tensor], Tensor]


def sampler(function: SamplingFunction, what: str = "sampling") -> Any:
    """A SAMPLER for SamplerCustom: `function(denoise, x, sigmas) -> x` in model space; masks work too."""

    def run(model_k, x, sigmas, extra_args=None, callback=None, disable=None, **_):
        simple = None
        if callback is not None:
            total = len(sigmas) - 1
            simple = lambda i, x0, now, _: callback({"i": min(i, total - 1), "denoised": x0, "x": now})  # noqa: E731
        return function(Denoiser(model_k, extra_args or {}, simple, len(sigmas) - 1), x, sigmas)

    return comfy("comfy.samplers", what).KSAMPLER(run)


def sample(
    model: Any,
    function: SamplingFunction,
    latent: Tensor,
    sigmas: Tensor,
    positive: list,
    negative: list | None = None,
    *,
    cfg: float = 1.0,
    steps: int | None = None,
    what: str = "sampling",
) -> Tensor:
    """Run `function` under ComfyUI's guider: loading, ControlNet, previews, cancelling and clean-up included.

    `latent` and the result are as LATENT carries them (the guider scales them to model space and back).
    `steps` is how many times the function will call `denoise.step`, where that is not len(sigmas) - 1.
    """
    samplers = comfy("comfy.samplers", what)
    guider = samplers.CFGGuider(model)
    sides = {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
    guider.inner_set_conds(sides)
    guider.set_cfg(cfg)
    total = steps or len(sigmas) - 1
    shown = comfy("latent_preview").prepare_callback(model, total)

    class Through(samplers.Sampler):
        def sample(self, guider, sigmas, extra_args, callback, noise, latent_image=None, *_, **__):
            inner = samplers.KSamplerX0Inpaint(guider, sigmas)
            extra_args["denoise_mask"] = None
            return function(Denoiser(inner, extra_args, shown, total), latent_image, sigmas)

    return guider.sample(torch.zeros_like(latent), latent, Through(), sigmas, disable_pbar=False, seed=0)


def differentiable(model: Any) -> Any:
    """A clone of a MODEL through which gradients flow; the shared model is not touched.

    Nodes run in inference mode, and weights that were loaded there cannot take part in autograd. A weight
    wrapper makes ComfyUI copy each weight when it is used, to a tensor that can. Compute with it inside
    `gradients()`, on inputs made there (`x.clone()`); load it once, outside the loop: `sample` does.
    """
    clone = model.clone()
    for name, _ in model.model.diffusion_model.named_parameters():
        clone.add_weight_wrapper(f"diffusion_model.{name}", _as_it_is)
    return clone


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


@contextmanager
def gradients() -> Iterator[None]:
    """Autograd on, inference mode off, as inside no node: `with host.gradients(): ...`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


# -- VIDEO -----------------------------------------------------------------------------------------


@cache
def _comfy_video_base() -> type:
    for name in ("comfy_api.latest._input.video_types", "comfy_api.input.video_types", "comfy_api.input"):
        try:
            return comfy(name).VideoInput
        except (ImportError, AttributeError):
            continue
    return object


def video_base() -> type:
    """The host's base class of a VIDEO, else `object`."""
    return _comfy_video_base() if inside_comfyui() else object


def video_file(video: Any) -> Any:
    """The file (a path or a BytesIO) behind a host's VIDEO that nothing was done to, else None.

    A VIDEO made from frames answers with an H.264 rendering of them, and an edited one with the unedited
    file: those are not their files.
    """
    if type(video).__name__ != "VideoFromFile":
        return None
    if getattr(video, "has_pending_frame_edits", lambda: False)():
        return None
    return video.get_stream_source()


def video_components(images: Tensor, fps: Fraction, audio: dict | None = None) -> Any:
    """The host's VideoComponents: images [N, H, W, C], audio or None, frame_rate."""
    if inside_comfyui():
        make: Callable[..., Any] = comfy("comfy_api.util").VideoComponents
    else:
        make = SimpleNamespace
    return make(images=images, audio=audio, frame_rate=fps)
