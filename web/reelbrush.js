// ReelBrush in ComfyUI's browser: the finished clip replaces the live preview of the node that saved it,
// and is shown again after the page is loaded anew.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const RESULT = "reelbrush_result";

// The front end's own store of previews; null in front ends without it.
function previewStore() {
  const pinia = document.querySelector("#vue-app")?.__vue_app__?.config.globalProperties.$pinia;
  return pinia?._s.get("nodeOutput") ?? null;
}

// A node by the id that the server uses: "12", or "5:12" for node 12 inside the subgraph node 5.
function nodeOf(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(executionId).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

// The id of a node in the stores: "12", or "<id of the subgraph>:12".
function locatorOf(node) {
  const graph = node.graph;
  return !graph || graph.isRootGraph !== false ? String(node.id) : `${graph.id}:${node.id}`;
}

function clearPreview(node) {
  const store = previewStore();
  if (store?.revokePreviewsByLocatorId) store.revokePreviewsByLocatorId(locatorOf(node));
  else delete app.nodePreviewImages?.[locatorOf(node)];
  node.preview = node.imgs = undefined;
  const still = node.widgets?.findIndex((widget) => widget.name === "$$canvas-image-preview") ?? -1;
  if (still >= 0) node.widgets.splice(still, 1)[0].onRemove?.();
}

// Properties are saved with the workflow when the front end notices a change.
export function saveDraft() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

function showResult(node, output) {
  app.nodeOutputs = { ...app.nodeOutputs, [String(node.id)]: output };
  previewStore()?.setNodeOutputsByExecutionId?.(String(node.id), output);
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "ReelBrush",

  setup() {
    api.addEventListener("executed", ({ detail }) => {
      const saved = detail?.output?.animated?.some(Boolean);
      if (!saved && !detail?.output?.reelbrush_compare) return;
      const node = nodeOf(detail.display_node || detail.node);
      if (!node) return;
      clearPreview(node);
      if (!saved) return;
      node.properties[RESULT] = { images: detail.output.images, animated: detail.output.animated };
      saveDraft();
    });
  },

  // Node outputs are not part of a saved workflow: the last result is kept in the node's properties.
  loadedGraphNode(node) {
    const output = node.properties?.[RESULT];
    if (output) setTimeout(() => showResult(node, output), 0);
  },
});
