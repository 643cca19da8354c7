"""The list of all nodes, which ComfyUI reads.

Tools that scan packs without importing them need the literal dictionary. A test checks that it is equal
to the `NODES` of the packages.
"""

from .attnstyle import nodes as attnstyle_nodes
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
    "ReelBrushFlowError": flow_nodes.error_nodes.FlowError,
    "ReelBrushFlowErrorVideo": flow_nodes.error_nodes.FlowErrorVideo,
    "ReelBrushStabilityReport": flow_nodes.error_nodes.StabilityReport,
    "ReelBrushStabilize": flow_nodes.Stabilize,
    "ReelBrushStabilizeVideo": flow_nodes.StabilizeVideo,
    "ReelBrushLoadStyA2K": stya2k_nodes.LoadStyA2K,
    "ReelBrushStyA2KStyle": stya2k_nodes.StyA2KStyle,
    "ReelBrushStyA2KMix": stya2k_nodes.StyA2KMix,
    "ReelBrushStyA2KApply": stya2k_nodes.StyA2KApply,
    "ReelBrushStyA2KApplyVideo": stya2k_nodes.StyA2KApplyVideo,
    "ReelBrushTrainStyA2K": stya2k_nodes.TrainStyA2K,
    "ReelBrushInvert": diffusion_nodes.trajectory_nodes.Invert,
    "ReelBrushSaveTrajectory": diffusion_nodes.trajectory_nodes.SaveTrajectory,
    "ReelBrushLoadTrajectory": diffusion_nodes.trajectory_nodes.LoadTrajectory,
    "ReelBrushReconstruct": diffusion_nodes.trajectory_nodes.Reconstruct,
    "ReelBrushNullText": diffusion_nodes.trajectory_nodes.NullText,
    "ReelBrushZStar": diffusion_nodes.style_nodes.ZStarNode,
    "ReelBrushReferenceAttention": diffusion_nodes.style_nodes.ReferenceAttentionNode,
    "ReelBrushReferenceNoise": diffusion_nodes.style_nodes.ReferenceNoise,
    "ReelBrushMatchLatent": diffusion_nodes.style_nodes.MatchLatent,
    "ReelBrushInject": diffusion_nodes.inject_nodes.Inject,
    "ReelBrushTrainStyleLoRA": diffusion_nodes.lora_nodes.TrainStyleLoRA,
    "ReelBrushLoadStyleLoRA": diffusion_nodes.lora_nodes.LoadStyleLoRA,
    "ReelBrushApplyStyleLoRA": diffusion_nodes.inject_nodes.ApplyStyleLoRA,
    "ReelBrushPromptMask": diffusion_nodes.inject_nodes.PromptMask,
    "ReelBrushTemporalAttention": diffusion_nodes.clip_nodes.TemporalAttention,
    "ReelBrushFramesPerCall": diffusion_nodes.clip_nodes.FramesPerCall,
    "ReelBrushAttentionView": diffusion_nodes.clip_nodes.AttentionView,
    "ReelBrushADOptimize": distill_nodes.ADOptimize,
    "ReelBrushADSampler": distill_nodes.ADSampler,
    "ReelBrushTextureInit": distill_nodes.texture_nodes.TextureInit,
    "ReelBrushTextureExpand": distill_nodes.texture_nodes.TextureExpand,
    "ReelBrushSeamless": distill_nodes.texture_nodes.Seamless,
    "ReelBrushTuneVAE": distill_nodes.texture_nodes.TuneVAE,
    "ReelBrushStyleJudge": attnstyle_nodes.judge_nodes.StyleJudge,
    "ReelBrushLoadStyleJudge": attnstyle_nodes.judge_nodes.LoadStyleJudge,
    "ReelBrushDiffusionJudge": attnstyle_nodes.judge_nodes.DiffusionStyleJudge,
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
