"""The wings, and the list of their nodes that ComfyUI reads.

The literal dictionary is for tools that scan packs without importing them; a test keeps it equal to
what the wings declare.
"""

NODE_CLASS_MAPPINGS: dict[str, type] = {}

NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
