// ReelBrush in ComfyUI's browser: the finished clip replaces the live preview of the node that saved it,
// and is shown again after the page is loaded anew. Links have a colour per type, nodes have a badge.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const RESULT = "reelbrush_result";

// Results of workflows whose tab is not open: by the path of the workflow and the id of the node.
const waiting = new Map();

// Colours of links; themes have none for these types.
const COLOURS = {
  VIDEO: "#4db6ac",
  REELBRUSH_STYLE: "#f06292",
  REELBRUSH_STYA2K: "#7e57c2",
  REELBRUSH_FLOW: "#ffb74d",
  REELBRUSH_TRAJECTORY: "#a1887f",
  REELBRUSH_LORA: "#dce775",
  REELBRUSH_ATTNSTYLE: "#ba68c8",
  REELBRUSH_JUDGE: "#90a4ae",
};

// A store of the front end: "nodeOutput" has the previews, "nodeDef" the nodes; null in front ends without it.
function store(name) {
  const pinia = document.querySelector("#vue-app")?.__vue_app__?.config.globalProperties.$pinia;
  return pinia?._s.get(name) ?? null;
}

// A theme sets its colours when it is loaded, and clears those of the types that it does not know.
function colourLinks() {
  const style = document.createElement("style");
  const names = Object.entries(COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
  style.textContent = `:root { ${names.join(" ")} }`; // Nodes 2.0
  document.head.append(style);
  for (const colours of [app.canvas.default_connection_color_byType, app.canvas.constructor.link_type_colors]) {
    if (!colours) continue;
    for (const [type, ours] of Object.entries(COLOURS)) {
      let themes = colours[type];
      Object.defineProperty(colours, type, {
        configurable: true,
        enumerable: true,
        get: () => themes || ours,
        set: (colour) => (themes = colour),
      });
    }
  }
}

// The badge has the name of the folder below custom_nodes; show the name of the pack instead.
function nameBadges() {
  for (const [name, definition] of Object.entries(store("nodeDef")?.nodeDefsByName ?? {}))
    if (name.startsWith("ReelBrush") && definition.nodeSource)
      definition.nodeSource = { ...definition.nodeSource, displayText: "ReelBrush", badgeText: "ReelBrush" };
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
  const previews = store("nodeOutput");
  if (previews?.revokePreviewsByLocatorId) previews.revokePreviewsByLocatorId(locatorOf(node));
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

// For a moment after a change of tabs the canvas shows one workflow and the front end names another.
const isOutput = (node) => node?.constructor.nodeData?.output_node;

function openPath() {
  return store("workflow")?.activeWorkflow?.path;
}

function keepResult(node, output) {
  node.properties[RESULT] = { images: output.images, animated: output.animated };
  saveDraft();
}

function showResult(node, output) {
  app.nodeOutputs = { ...app.nodeOutputs, [String(node.id)]: output };
  store("nodeOutput")?.setNodeOutputsByExecutionId?.(String(node.id), output);
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "ReelBrush",

  setup() {
    colourLinks();
    nameBadges();
    api.addEventListener("executed", ({ detail }) => {
      const saved = detail?.output?.animated?.some(Boolean);
      if (!saved && !detail?.output?.reelbrush_compare) return;
      const id = detail.display_node || detail.node;
      const node = nodeOf(id);
      const path = store("execution")?.jobIdToSessionWorkflowPath?.get(detail.prompt_id);
      const elsewhere = path && (path !== openPath() || !isOutput(node));
      if (elsewhere) return void waiting.set(`${path} ${id}`, detail.output);
      if (!node) return;
      clearPreview(node);
      if (saved) keepResult(node, detail.output);
    });
  },

  // Node outputs are not part of a saved workflow: the last result is kept in the node's properties.
  loadedGraphNode(node) {
    const output = node.properties?.[RESULT];
    if (output) setTimeout(() => showResult(node, output), 0);
    setTimeout(() => {
      const key = `${openPath()} ${node.id}`, late = waiting.get(key);
      if (!late || !isOutput(node)) return;
      waiting.delete(key);
      if (late.animated) {
        keepResult(node, late);
        showResult(node, late);
      } else node.onExecuted?.(late);
    }, 2000); // the front end says which workflow is open some time after its nodes are loaded
  },
});
