// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// Boxes of a photo from an exported detection model, in the browser, with onnxruntime-web.
"use strict";

const CONFIDENCE = 0.25; // the smallest score of a box
const OVERLAP = 0.7; // boxes of a class that overlap more (IoU) are one
const $ = (id) => document.getElementById(id);
let model = null; // {session, names, height, width}

function say(text, wrong = false) {
  $("said").textContent = text;
  $("said").classList.toggle("wrong", wrong);
}

// The metadata of an ONNX file, which onnxruntime-web does not hand out: field 14 of the protobuf message, key and value.
function metadata(bytes) {
  const text = new TextDecoder(), found = {};
  function* fields(from, to) {
    const number = () => {
      let value = 0, factor = 1, byte;
      do {
        byte = bytes[from++];
        value += (byte & 127) * factor;
        factor *= 128;
      } while (byte & 128);
      return value;
    };
    while (from < to) {
      const tag = number();
      if (tag % 8 === 0) number();
      else if (tag % 8 !== 2) return;
      else {
        const length = number();
        yield [Math.floor(tag / 8), from, from + length];
        from += length;
      }
    }
  }
  for (const [field, from, to] of fields(0, bytes.length)) {
    if (field !== 14) continue;
    const [key, value] = [...fields(from, to)].map(([, a, b]) => text.decode(bytes.subarray(a, b)));
    found[key] = value;
  }
  return found;
}

async function load(buffer, name) {
  if (typeof ort === "undefined") throw new Error("ort.wasm.min.js of onnxruntime-web is not beside this page");
  say(`Loading ${name} ...`);
  const meta = metadata(new Uint8Array(buffer));
  if (meta.task !== "detect") throw new Error(`${name} is no exported detection model`);
  if (meta.head === "RTDETRDecoder") throw new Error(`${name} is of RT-DETR, whose boxes are of another form`);
  const names = {};
  const written = /(\d+): (?:'((?:\\.|[^'\\])*)'|"((?:\\.|[^"\\])*)")/g; // as Python writes a dict
  for (const [, key, single, double] of meta.names.matchAll(written)) names[key] = (single ?? double).replace(/\\(.)/g, "$1");
  const [height, width] = JSON.parse(meta.imgsz);
  const older = model;
  model = { session: await ort.InferenceSession.create(buffer), names, height, width };
  await older?.session.release();
  say(`${name} is ready: ${Object.values(names).slice(0, 8).join(", ")}. Drop a photo.`);
}

// The photo in the middle of a grey canvas, as (1, 3, H, W), with its scale there and its left upper corner.
function letterbox(photo) {
  const { height, width } = model, scale = Math.min(height / photo.height, width / photo.width);
  const w = Math.max(1, Math.round(photo.width * scale)), h = Math.max(1, Math.round(photo.height * scale));
  const left = Math.floor((width - w) / 2), top = Math.floor((height - h) / 2);
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  context.fillStyle = "rgb(114, 114, 114)";
  context.fillRect(0, 0, width, height);
  context.drawImage(photo, left, top, w, h);
  const pixels = context.getImageData(0, 0, width, height).data, plane = height * width;
  const x = new Float32Array(3 * plane);
  for (let i = 0; i < plane; i++) for (let c = 0; c < 3; c++) x[c * plane + i] = pixels[4 * i + c] / 255;
  return { x: new ort.Tensor("float32", x, [1, 3, height, width]), scale, left, top };
}

// Rows of six if NMS is in the file or the head needs none, else (4 + classes, anchors): to boxes, best first.
function boxesOf({ data, dims: [, rows, columns] }) {
  const found = [];
  if (columns === 6) {
    for (let i = 0; i < rows; i++) {
      const [x1, y1, x2, y2, score, kind] = data.subarray(6 * i, 6 * i + 6);
      if (score > CONFIDENCE) found.push({ x1, y1, x2, y2, score, kind });
    }
    return found;
  }
  for (let i = 0; i < columns; i++) {
    let kind = 0;
    for (let c = 1; c < rows - 4; c++) if (data[(4 + c) * columns + i] > data[(4 + kind) * columns + i]) kind = c;
    const score = data[(4 + kind) * columns + i];
    if (score <= CONFIDENCE) continue;
    const [x, y, w, h] = [0, 1, 2, 3].map((k) => data[k * columns + i]);
    found.push({ x1: x - w / 2, y1: y - h / 2, x2: x + w / 2, y2: y + h / 2, score, kind });
  }
  found.sort((a, b) => b.score - a.score);
  const area = (b) => (b.x2 - b.x1) * (b.y2 - b.y1), kept = [];
  for (const b of found) {
    const same = (k) => {
      const w = Math.min(b.x2, k.x2) - Math.max(b.x1, k.x1), h = Math.min(b.y2, k.y2) - Math.max(b.y1, k.y1);
      const both = Math.max(w, 0) * Math.max(h, 0);
      return k.kind === b.kind && both > OVERLAP * (area(b) + area(k) - both);
    };
    if (!kept.some(same)) kept.push(b);
  }
  return kept;
}

function draw(photo, boxes) {
  const canvas = $("picture"), context = canvas.getContext("2d"), line = Math.max(2, photo.width / 300);
  [canvas.width, canvas.height] = [photo.width, photo.height];
  context.drawImage(photo, 0, 0);
  context.lineWidth = line;
  context.font = `${8 * line}px sans-serif`;
  for (const b of boxes) {
    const colour = `hsl(${(b.kind * 137) % 360} 80% 45%)`, text = `${b.name} ${b.score.toFixed(2)}`;
    context.strokeStyle = context.fillStyle = colour;
    context.strokeRect(b.x1, b.y1, b.x2 - b.x1, b.y2 - b.y1);
    const y = Math.max(b.y1, 10 * line);
    context.fillRect(b.x1, y - 10 * line, context.measureText(text).width + 4 * line, 10 * line);
    context.fillStyle = "#fff";
    context.fillText(text, b.x1 + 2 * line, y - 2.5 * line);
  }
}

async function detect(file) {
  let photo;
  try {
    photo = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no picture that this browser can read`);
  }
  const { x, scale, left, top } = letterbox(photo), { session, names } = model;
  const begin = performance.now();
  const output = (await session.run({ [session.inputNames[0]]: x }))[session.outputNames[0]];
  const milliseconds = Math.round(performance.now() - begin);
  const boxes = boxesOf(output).map((b) => ({
    x1: (b.x1 - left) / scale, y1: (b.y1 - top) / scale, x2: (b.x2 - left) / scale, y2: (b.y2 - top) / scale,
    score: b.score, kind: b.kind, name: names[b.kind],
  }));
  draw(photo, boxes);
  photo.close();
  say(`${boxes.length} boxes, ${milliseconds} ms`);
  document.dispatchEvent(new CustomEvent("detected", { detail: { boxes, milliseconds } }));
}

// One file after the other: a run that is not over would be asked twice.
let turn = Promise.resolve();
function take(file) {
  const work = async () => {
    if (file.name.endsWith(".onnx")) return load(await file.arrayBuffer(), file.name);
    if (!model) throw new Error("there is no model yet: drop an .onnx file first");
    return detect(file);
  };
  turn = turn.then(work).catch((e) => say(e.message, true));
}

const zone = $("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    zone.classList.toggle("over", kind === "dragover");
    if (kind === "drop") for (const file of event.dataTransfer.files) take(file);
  });
}
$("file").addEventListener("change", (event) => {
  for (const file of event.target.files) take(file);
  event.target.value = "";
});

turn = fetch("best.onnx")
  .catch(() => {
    throw new Error("a page opened as a file may read no other file: run python -m http.server here, and open its address");
  })
  .then((answer) => {
    if (!answer.ok) throw new Error("best.onnx is not beside this page: drop an .onnx file here");
    return answer.arrayBuffer();
  })
  .then((buffer) => load(buffer, "best.onnx"))
  .catch((e) => say(e.message, true));
