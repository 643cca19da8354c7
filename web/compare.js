// The player of Compare Videos: two clips in step, a divider, and the flow error of both on one axis.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { saveDraft } from "./reelbrush.js";

const RESULT = "reelbrush_compare";
const COLORS = ["#4aa3ff", "#ff9d3c"];
const STYLE = `
.rb-compare { display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%; color: #ccc; font: 12px sans-serif; }
.rb-stage { position: relative; flex: 1 1 auto; min-height: 60px; background: #000; overflow: hidden; cursor: ew-resize; }
.rb-stage video { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; pointer-events: none; }
.rb-stage[data-mode="side by side"] video { width: 50%; }
.rb-stage[data-mode="side by side"] video + video { left: 50%; }
.rb-stage[data-mode="difference"] video + video { mix-blend-mode: difference; }
.rb-hint { position: absolute; inset: 0; margin: auto; height: 1em; text-align: center; }
.rb-line { position: absolute; top: 0; bottom: 0; width: 2px; background: #fff; display: none; }
.rb-stage[data-mode="wipe"] .rb-line { display: block; }
.rb-bar { display: flex; gap: 6px; align-items: center; flex: 0 0 auto; }
.rb-bar input { flex: 1; }
.rb-bar button { min-width: 48px; }
.rb-compare canvas { flex: 0 0 90px; width: 100%; height: 90px; }`;

function address(file) {
  return api.apiURL(`/view?${new URLSearchParams(file)}`);
}

class Player {
  constructor() {
    this.root = document.createElement("div");
    this.root.className = "rb-compare";
    this.root.innerHTML = `<style>${STYLE}</style>
      <div class="rb-stage" data-mode="wipe"><video muted loop playsinline></video><video muted loop playsinline></video>
      <div class="rb-line"></div><p class="rb-hint">Run the workflow to compare the clips.</p></div>
      <div class="rb-bar"><button>Play</button><input type="range" min="0" max="1" step="any" value="0"><span></span></div>
      <canvas></canvas>`;
    this.stage = this.root.querySelector(".rb-stage");
    this.videos = [...this.root.querySelectorAll("video")];
    [this.button, this.time, this.label] = this.root.querySelector(".rb-bar").children;
    this.line = this.root.querySelector(".rb-line");
    this.canvas = this.root.querySelector("canvas");
    this.divider = 0.5;
    this.stage.addEventListener("pointerdown", (event) => this.drag(event));
    this.stage.addEventListener("pointermove", (event) => event.buttons && this.drag(event));
    this.button.addEventListener("click", () => (this.videos[0].paused ? this.play() : this.pause()));
    this.time.addEventListener("input", () => {
      this.pause();
      this.seek(this.time.value * (this.videos[0].duration || 0));
    });
    for (const video of this.videos) video.addEventListener("loadeddata", () => this.draw());
    this.canvas.hidden = true;
  }

  show(result) {
    this.result = result;
    this.stage.querySelector(".rb-hint")?.remove();
    this.stage.dataset.mode = result.mode;
    this.pause();
    this.videos.forEach((video, i) => (video.src = address([result.a, result.b][i])));
    this.canvas.hidden = !result.curves;
    this.split();
    this.draw();
  }

  drag(event) {
    event.stopPropagation();
    const box = this.stage.getBoundingClientRect();
    this.divider = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    this.split();
  }

  split() {
    const share = `${this.divider * 100}%`;
    this.videos[1].style.clipPath = this.stage.dataset.mode === "wipe" ? `inset(0 0 0 ${share})` : "";
    this.line.style.left = share;
  }

  async play() {
    this.button.textContent = "Pause";
    this.videos[1].currentTime = this.videos[0].currentTime;
    await Promise.all(this.videos.map((video) => video.play().catch(() => {})));
    const step = () => {
      if (this.videos[0].paused) return;
      // The second clip follows the first when they drift apart by more than half a frame.
      const gap = this.videos[0].currentTime - this.videos[1].currentTime;
      if (Math.abs(gap) > 0.5 / this.result.fps) this.videos[1].currentTime = this.videos[0].currentTime;
      this.draw();
      requestAnimationFrame(step);
    };
    step();
  }

  pause() {
    this.button.textContent = "Play";
    for (const video of this.videos) video.pause();
  }

  seek(seconds) {
    for (const video of this.videos) video.currentTime = seconds;
    this.draw();
  }

  draw() {
    const { currentTime, duration } = this.videos[0];
    if (!this.time.matches(":active") && duration) this.time.value = currentTime / duration;
    const frame = Math.round(currentTime * (this.result?.fps ?? 1));
    this.label.textContent = `frame ${frame}`;
    const curves = this.result?.curves;
    if (!curves) return;
    const { canvas } = this;
    const [width, height] = [(canvas.width = canvas.clientWidth || 300), (canvas.height = 90)];
    const pen = canvas.getContext("2d");
    const top = Math.max(1e-9, ...curves.flat().filter((value) => value !== null));
    const last = Math.max(1, curves[0].length - 1);
    const at = (i, value) => [(i / last) * (width - 8) + 4, height - 6 - (value / top) * (height - 28)];
    pen.clearRect(0, 0, width, height);
    curves.forEach((curve, k) => {
      pen.strokeStyle = pen.fillStyle = COLORS[k];
      pen.beginPath();
      let open = false;
      curve.forEach((value, i) => {
        if (value !== null) open ? pen.lineTo(...at(i, value)) : pen.moveTo(...at(i, value));
        open = value !== null;
      });
      pen.stroke();
      const mean = this.result.means[k];
      pen.fillText(`${"ab"[k]}: flow error ${mean === null ? "-" : mean.toPrecision(3)}`, 4 + k * 140, 10);
    });
    pen.strokeStyle = "#888";
    const [x] = at(Math.min(frame, last), 0);
    pen.strokeRect(x, 16, 0, height - 20);
  }
}

app.registerExtension({
  name: "ReelBrush.CompareVideo",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name !== "ReelBrushCompareVideo") return;
    const created = nodeType.prototype.onNodeCreated;
    nodeType.prototype.onNodeCreated = function () {
      created?.apply(this, arguments);
      this.reelbrushPlayer = new Player();
      this.addDOMWidget("player", "reelbrush_player", this.reelbrushPlayer.root, {
        serialize: false,
        getMinHeight: () => 320,
      });
      this.setSize([Math.max(this.size[0], 460), Math.max(this.size[1], 460)]);
    };
    const executed = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      executed?.apply(this, arguments);
      const result = output?.[RESULT]?.[0];
      if (!result) return;
      this.properties[RESULT] = result;
      this.reelbrushPlayer.show(result);
      saveDraft();
    };
  },

  loadedGraphNode(node) {
    const result = node.properties?.[RESULT];
    if (result && node.reelbrushPlayer) node.reelbrushPlayer.show(result);
  },
});
