"""The list of all nodes, which ComfyUI reads.

Tools that scan packs without importing them need the literal dictionary. A test checks that it is equal
to the `NODES` of the packages.
"""

from .attnstyle import nodes as attnstyle_nodes
from .common.checks import checked
from .diffusion import nodes as diffusion_nodes
from .distill import nodes as distill_nodes
from .flow import nodes as flow_nodes
from .stya2k import nodes as stya2k_nodes
from .video import nodes as video_nodes

_DECLARATIONS = (video_nodes, flow_nodes, stya2k_nodes, distill_nodes, attnstyle_nodes, diffusion_nodes)

NODE_CLASS_MAPPINGS = {
    "ReelBrushSaveVideo": video_nodes.SaveVideo,
    "ReelBrushTrimVideo": video_nodes.TrimVideo,
    "ReelBrushPreviewVideo": video_nodes.PreviewVideo,
    "ReelBrushEncodeVideo": video_nodes.EncodeVideo,
    "ReelBrushDecodeVideo": video_nodes.DecodeVideo,
    "ReelBrushOpticalFlow": flow_nodes.OpticalFlow,
    "ReelBrushSaveFlow": flow_nodes.SaveFlow,
    "ReelBrushLoadFlow": flow_nodes.LoadFlow,
    "ReelBrushFlowWarp": flow_nodes.FlowWarp,
    "ReelBrushFlowError": flow_nodes.nodes_error.FlowError,
    "ReelBrushFlowErrorVideo": flow_nodes.nodes_error.FlowErrorVideo,
    "ReelBrushStabilityReport": flow_nodes.nodes_error.StabilityReport,
    "ReelBrushCompareVideo": flow_nodes.nodes_error.CompareVideo,
    "ReelBrushStabilize": flow_nodes.Stabilize,
    "ReelBrushStabilizeVideo": flow_nodes.StabilizeVideo,
    "ReelBrushStylizeVideo": stya2k_nodes.StylizeVideo,
    "ReelBrushLoadStyA2K": stya2k_nodes.LoadStyA2K,
    "ReelBrushStyA2KStyle": stya2k_nodes.StyA2KStyle,
    "ReelBrushStyA2KMix": stya2k_nodes.StyA2KMix,
    "ReelBrushStyA2KApply": stya2k_nodes.StyA2KApply,
    "ReelBrushStyA2KApplyVideo": stya2k_nodes.StyA2KApplyVideo,
    "ReelBrushTrainStyA2K": stya2k_nodes.TrainStyA2K,
    "ReelBrushInvert": diffusion_nodes.nodes_trajectory.Invert,
    "ReelBrushSaveTrajectory": diffusion_nodes.nodes_trajectory.SaveTrajectory,
    "ReelBrushLoadTrajectory": diffusion_nodes.nodes_trajectory.LoadTrajectory,
    "ReelBrushReconstruct": diffusion_nodes.nodes_trajectory.Reconstruct,
    "ReelBrushNullText": diffusion_nodes.nodes_trajectory.NullText,
    "ReelBrushZStar": diffusion_nodes.nodes_style.ZStar,
    "ReelBrushReferenceAttention": diffusion_nodes.nodes_style.ReferenceAttention,
    "ReelBrushReferenceNoise": diffusion_nodes.nodes_style.ReferenceNoise,
    "ReelBrushMatchLatent": diffusion_nodes.nodes_style.MatchLatent,
    "ReelBrushInject": diffusion_nodes.nodes_inject.Inject,
    "ReelBrushTrainStyleLoRA": diffusion_nodes.nodes_lora.TrainStyleLoRA,
    "ReelBrushLoadStyleLoRA": diffusion_nodes.nodes_lora.LoadStyleLoRA,
    "ReelBrushApplyStyleLoRA": diffusion_nodes.nodes_inject.ApplyStyleLoRA,
    "ReelBrushPromptMask": diffusion_nodes.nodes_inject.PromptMask,
    "ReelBrushTemporalAttention": diffusion_nodes.nodes_clip.TemporalAttention,
    "ReelBrushFramesPerCall": diffusion_nodes.nodes_clip.FramesPerCall,
    "ReelBrushSampleVideo": diffusion_nodes.nodes_video.SampleVideo,
    "ReelBrushAttentionView": diffusion_nodes.nodes_clip.AttentionView,
    "ReelBrushADOptimize": distill_nodes.ADOptimize,
    "ReelBrushADSampler": distill_nodes.ADSampler,
    "ReelBrushADVideo": distill_nodes.nodes_video.ADVideo,
    "ReelBrushTextureInit": distill_nodes.nodes_texture.TextureInit,
    "ReelBrushTextureExpand": distill_nodes.nodes_texture.TextureExpand,
    "ReelBrushSeamless": distill_nodes.nodes_texture.Seamless,
    "ReelBrushTuneVAE": distill_nodes.nodes_texture.TuneVAE,
    "ReelBrushStyleJudge": attnstyle_nodes.nodes_judge.StyleJudge,
    "ReelBrushLoadStyleJudge": attnstyle_nodes.nodes_judge.LoadStyleJudge,
    "ReelBrushDiffusionJudge": attnstyle_nodes.nodes_judge.DiffusionStyleJudge,
    "ReelBrushKeyFrames": attnstyle_nodes.KeyFrames,
    "ReelBrushAttnStyle": attnstyle_nodes.AttnStyle,
    "ReelBrushAttnStyleApply": attnstyle_nodes.AttnStyleApply,
    "ReelBrushAttnStyleApplyVideo": attnstyle_nodes.AttnStyleApplyVideo,
    "ReelBrushSaveAttnStyle": attnstyle_nodes.SaveAttnStyle,
    "ReelBrushLoadAttnStyle": attnstyle_nodes.LoadAttnStyle,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    node_id: name for module in _DECLARATIONS for node_id, (_, name) in module.NODES.items()
}

for _node in NODE_CLASS_MAPPINGS.values():
    checked(_node)
