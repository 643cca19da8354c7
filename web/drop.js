// A clip that is dropped onto the canvas opens the workflow that is stored in it. ComfyUI reads mp4, mov and
// webm files; this adds mkv, which is stored as webm is, and gif.
import { app } from "../../scripts/app.js";

const COLOURS = 0x80, EXTENSION = 0x21, COMMENT = 0xfe, PICTURE = 0x2c;

const tableSize = (flags) => (flags & COLOURS ? 3 << ((flags & 7) + 1) : 0);

// The workflow in a comment of a GIF file, or null.
export function workflowOfGif(bytes) {
  let at = 13 + tableSize(bytes[10]);
  while (at < bytes.length) {
    const comment = bytes[at] === EXTENSION && bytes[at + 1] === COMMENT;
    if (bytes[at] === EXTENSION) at += 2;
    else if (bytes[at] === PICTURE) at += 11 + tableSize(bytes[at + 9]);
    else return null;
    const parts = [];
    for (; bytes[at]; at += bytes[at] + 1) if (comment) parts.push(bytes.subarray(at + 1, at + 1 + bytes[at]));
    at += 1;
    if (!comment) continue;
    try {
      const workflow = JSON.parse(new TextDecoder().decode(new Uint8Array(parts.flatMap((part) => [...part])))).workflow;
      if (workflow) return workflow;
    } catch {
      // another program's comment
    }
  }
  return null;
}

async function readable(file) {
  const name = file.name.toLowerCase();
  if (name.endsWith(".mkv")) return new File([file], file.name.replace(/mkv$/i, "webm"), { type: "video/webm" });
  if (!name.endsWith(".gif")) return file;
  const workflow = workflowOfGif(new Uint8Array(await file.arrayBuffer()));
  return workflow ? new File([workflow], file.name.replace(/gif$/i, "json"), { type: "application/json" }) : file;
}

app.registerExtension({
  name: "ReelBrush.Drop",

  setup() {
    const handleFile = app.handleFile;
    app.handleFile = async function (file, ...rest) {
      return handleFile.call(this, await readable(file), ...rest);
    };
  },
});
