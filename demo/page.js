// The page: what the user draws, types or says goes to the worker; its answers are shown. Both in two languages.
"use strict";

const TEXTS = {
  en: {
    title: "MINIST-CLIP: try the model",
    other_language: "中文",
    draw: "Draw a digit",
    canvas: "Canvas: draw with the mouse, a pen or a finger. Keys: arrows move, space lowers or lifts the pen.",
    pen: "pen",
    clear: "clear",
    picture: "or choose a picture",
    scenes: "Draw two digits, and describe them",
    test_scene: "test scene",
    caption: "a caption of your own",
    own_caption: "a seven left of a three",
    exchanged: "your caption, and with its digits exchanged",
    sentences: "sentences to compare with, one per line",
    type: "Describe a digit",
    search: "search",
    say: "Say a digit, in English",
    record: "record",
    stop: "stop",
    sound: "or choose a recording",
    seen: "as the model sees it: 28x28",
    read: (caption) => `read as: ${caption}`,
    outlier: (kind) => `read as: no digit${kind && `; most like ${kind}`}`,
    grades: (thickness, slant) => `by the captions, from 0 to 4: thickness ${thickness}, slant ${slant}`,
    measured: (values) => `measured: ${values}`,
    values: (thickness, slant) => [`${thickness} px`, `${slant} rad`],
    captions: "the best captions, by cosine similarity",
    nearest: "the most similar test images, with their labels",
    drawings: "generated, with what the model reads",
    progress: (percent) => `generating: ${percent} %`,
    no_generator: "Nothing is generated: this page has no generator. `make generator` trains one.",
    no_speech: "This page has no tower for speech. `make speech` trains one.",
    empty: "The canvas is empty: draw a digit with the mouse, a pen or a finger.",
    empty_scene: "The canvas is empty: draw two digits in its frames, beside or above each other.",
    many_words: (most) => `The caption has more than ${most} words: shorten it.`,
    no_word: "The text has no word: name a digit, such as “seven”.",
    lone_not: "不 is understood before 是 alone: write 不是.",
    unknown_word: (word) => `The model does not know the word “${word}”: use words such as those of the examples.`,
    no_sentences: "The list of sentences is empty: write one on a line, such as “seven”.",
    not_picture: "The file is no picture that this browser can read, or a very large one: choose another.",
    not_sound: "The file is no sound that this browser can read: choose another.",
    too_large: "The file has more than 64 MB: choose a smaller one.",
    microphone: "The microphone cannot be used: allow it in the browser, or choose a recording.",
    silence: "The sound is all silence: record it again, closer to the microphone.",
    failed: (what) => `Something went wrong: ${what}`,
    examples: ["a thick seven leaning left", "a thin zero", "an italic four in fine strokes", "not a thick eight"],
  },
  zh: {
    title: "MINIST-CLIP：试用模型",
    other_language: "English",
    draw: "手写一个数字",
    canvas: "画布：用鼠标、触控笔或手指书写。键盘：方向键移动，空格键落笔或提笔。",
    pen: "笔粗",
    clear: "清除",
    picture: "或选择图片",
    scenes: "画两个数字，并加以描述",
    test_scene: "测试场景",
    caption: "写一句自己的描述",
    own_caption: "七在三的左边",
    exchanged: "你的描述，以及交换两个数字后的描述",
    sentences: "用于比较的句子，每行一句",
    type: "描述一个数字",
    search: "搜索",
    say: "用英语说一个数字",
    record: "录音",
    stop: "停止",
    sound: "或选择录音文件",
    seen: "模型看到的图像：28x28",
    read: (caption) => `识别为：${caption}`,
    outlier: (kind) => `识别为：不是数字${kind && `，最像${kind}`}`,
    grades: (thickness, slant) => `由描述得出的等级（0 到 4）：粗细 ${thickness}，倾斜 ${slant}`,
    measured: (values) => `测量值：${values}`,
    values: (thickness, slant) => [`${thickness} 像素`, `${slant} 弧度`],
    captions: "最接近的描述（余弦相似度）",
    nearest: "最相似的测试图像及其标签",
    drawings: "生成的图像，以及模型的识别结果",
    progress: (percent) => `正在生成：${percent} %`,
    no_generator: "无法生成图像：此页面没有生成器，可用 `make generator` 训练。",
    no_speech: "此页面没有语音编码器，可用 `make speech` 训练。",
    empty: "画布是空的：请用鼠标、触控笔或手指写一个数字。",
    empty_scene: "画布是空的：请在虚线框内左右或上下写两个数字。",
    many_words: (most) => `描述超过 ${most} 个字或词：请缩短。`,
    no_word: "文字中没有词语：请说出一个数字，例如“七”。",
    lone_not: "模型只理解“不是”：请把“不”写成“不是”。",
    unknown_word: (word) => `模型不认识“${word}”：请使用示例中那样的词语。`,
    no_sentences: "句子列表为空：请每行写一句，例如“七”。",
    not_picture: "浏览器无法读取该图片，或图片过大：请选择其他文件。",
    not_sound: "浏览器无法读取该声音文件：请选择其他文件。",
    too_large: "文件超过 64 MB：请选择较小的文件。",
    microphone: "无法使用麦克风：请在浏览器中允许，或选择录音文件。",
    silence: "录音中没有声音：请靠近麦克风重新录制。",
    failed: (what) => `出错了：${what}`,
    examples: ["粗体的向左倾斜的七", "一个细体的零", "极度右倾的四，较细", "不是粗体的八"],
  },
};
const MAX_BYTES = 64e6; // of a file
const MAX_SIDE = 2048; // of a picture in the worker, pixels
const KEY_STEP = 10; // of the pen on the canvas, pixels
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], " ": [0, 0] };

const find = (id) => document.getElementById(id);
const PLACES = { see: find("seen"), find: find("found"), hear: find("heard"), scene: find("scene-seen") };
let language = navigator.language.startsWith("zh") ? "zh" : "en";
let page = null; // what the worker says of the model, when it is there
const shown = {}; // by kind of question: its id, and what is shown for it

function text(key, ...what) {
  const entry = TEXTS[language][key];
  return typeof entry === "function" ? entry(...what) : entry;
}

// ---- the worker ----

const url = URL.createObjectURL(new Blob([find("worker").textContent], { type: "text/javascript" }));
const worker = new Worker(url);
let last_id = 0;

function ask(kind, question = {}, transfer = []) {
  shown[kind] = { id: ++last_id };
  worker.postMessage({ id: last_id, kind, ...question }, transfer);
}

worker.onmessage = ({ data: { id, kind, answer, error, drawing, progress } }) => {
  if (shown[kind].id !== id) return;
  if (kind === "load") {
    if (error) return fail("see", error.key, error.what);
    page = answer;
    return start();
  }
  if (answer) shown[kind].answer = answer;
  if (error) shown[kind].error = error;
  if (drawing) (shown[kind].drawings ??= []).push(drawing);
  shown[kind].progress = progress;
  show(kind);
};

function fail(kind, key, what) {
  shown[kind] = { id: ++last_id, error: { key, what } };
  show(kind);
}

// ---- answers on the page ----

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

const problem = (key, what) => element("p", { className: "problem", role: "alert" }, text(key, what));

function values_of({ values: [thickness, slant] }) {
  return text("values", thickness.toFixed(1), (slant < 0 ? "" : "+") + slant.toFixed(2));
}

function picture(pixels, label) {
  const side = Math.sqrt(pixels.length);
  const canvas = element("canvas", { width: side, height: side, role: "img", ariaLabel: label });
  const rgba = Uint8ClampedArray.from({ length: 4 * pixels.length }, (_, i) => (i % 4 === 3 ? 255 : pixels[i >> 2]));
  canvas.getContext("2d").putImageData(new ImageData(rgba, side, side), 0, 0);
  return canvas;
}

function figures(title, images) {
  const nodes = images.map((image) => {
    const lines = [page.sentences[language][image.digit], ...values_of(image)];
    const caption = element("figcaption", {}, ...lines.flatMap((line) => [line, element("br")]));
    return element("figure", {}, picture(image.pixels, lines.join(", ")), caption);
  });
  return [element("h3", {}, title), element("div", { className: "images" }, ...nodes)];
}

function reading({ is_digit, digit, outlier, bins, grades }) {
  if (!is_digit) return [text("outlier", outlier === null ? "" : page.outliers[language][outlier])];
  const place = bins.length ? 11 + digit * 9 + bins[0] * 3 + bins[1] : digit; // behind ten digits and "not a digit"
  const caption = text("read", page.sentences[language][place]);
  return bins.length ? [caption, text("grades", ...grades.map((grade) => grade.toFixed(1)))] : [caption];
}

function bars(title, { captions, problems }) {
  const nodes = captions.map(([sentence, cosine]) => {
    const bar = element("progress", { max: 1, value: Math.max(0, cosine), ariaLabel: sentence });
    const [name, value] = [sentence, cosine.toFixed(2)].map((line) => element("span", {}, line));
    return element("div", { className: "bar" }, name, bar, value);
  });
  return [element("h3", {}, title), ...problems.map(({ key, what }) => problem(key, what)), ...nodes];
}

function show(kind) {
  const { answer, error, drawings, progress } = shown[kind] ?? {};
  const nodes = [];
  if (error) nodes.push(problem(error.key, error.what));
  if (answer?.image) {
    const lines = [...reading(answer.reading), text("measured", values_of(answer.image).join(", "))];
    const paragraphs = lines.map((line) => element("p", {}, line));
    const image = picture(answer.image.pixels, text("seen"));
    nodes.push(element("h3", {}, text("seen")));
    nodes.push(element("div", { className: "image" }, image, element("div", {}, ...paragraphs)));
  }
  if (answer?.own) nodes.push(...bars(text(answer.own.captions.length > 1 ? "exchanged" : "caption"), answer.own));
  if (answer?.captions) nodes.push(...bars(text("captions"), answer));
  if (answer?.nearest) nodes.push(...figures(text("nearest"), answer.nearest));
  if (drawings) nodes.push(...figures(text("drawings"), drawings));
  if (progress < 1) nodes.push(element("p", {}, text("progress", Math.round(100 * progress))));
  if (answer?.nearest && kind !== "see" && !page.has.generator) nodes.push(problem("no_generator"));
  PLACES[kind].replaceChildren(...nodes);
}

// ---- the canvases ----

// A canvas to draw on with the mouse, a pen, a finger or the keys; `changed` is called after each line. -> its context.
function make_pad(id, clear, changed) {
  const [canvas, dot] = find(id).children;
  Object.assign(canvas, { tabIndex: 0, role: "img" });
  const pen = canvas.getContext("2d", { willReadFrequently: true });

  function start_line(x, y) {
    Object.assign(pen, { lineWidth: find("pen").value, lineCap: "round", lineJoin: "round", strokeStyle: "black" });
    pen.beginPath();
    pen.moveTo(x, y);
    line_to(x, y); // a tap is a dot
  }

  function line_to(x, y) {
    pen.lineTo(x, y);
    pen.stroke();
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top].map((side) => (side * canvas.width) / box.width);
  }

  let pointer = null; // the mouse, pen or finger that draws; all others are ignored until it leaves
  canvas.onpointerdown = (event) => {
    if (pointer !== null || event.button !== 0) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    start_line(...place(event));
  };
  canvas.onpointermove = (event) => {
    if (event.pointerId !== pointer) return;
    const steps = event.getCoalescedEvents?.() ?? [];
    for (const step of steps.length ? steps : [event]) line_to(...place(step));
  };
  canvas.onpointerup = canvas.onpointercancel = canvas.onlostpointercapture = (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    changed();
  };

  const cursor = { x: 140, y: 60, is_down: false }; // of the keyboard
  canvas.onkeydown = (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    [cursor.x, cursor.y] = [cursor.x + KEY_STEP * step[0], cursor.y + KEY_STEP * step[1]].map((side) =>
      Math.min(canvas.width, Math.max(0, side)));
    if (event.key === " ") {
      cursor.is_down = !cursor.is_down;
      if (cursor.is_down) start_line(cursor.x, cursor.y);
      else changed();
    } else if (cursor.is_down) line_to(cursor.x, cursor.y);
    show_cursor();
  };

  function show_cursor() {
    dot.classList.toggle("down", cursor.is_down);
    const percent = (side) => `${(100 * side) / canvas.width}%`;
    Object.assign(dot.style, { left: percent(cursor.x), top: percent(cursor.y) });
  }

  find(clear).onclick = () => {
    wipe(pen);
    changed();
  };
  wipe(pen);
  show_cursor();
  return pen;
}

function wipe(pen) {
  pen.fillStyle = "white";
  pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
}

function read_canvas(pen) {
  const { width, height } = pen.canvas;
  return { rgba: pen.getImageData(0, 0, width, height).data, width, height };
}

const [pen, scene_pen] = [make_pad("pad", "clear", see_canvas), make_pad("scene-pad", "clear-scene", see_scene)];
let seen = null; // the canvas, or the picture that was chosen: {rgba, width, height}

const lines_of = () => find("sentences").value.split("\n").map((line) => line.trim()).filter(Boolean);

function see() {
  if (page) ask("see", { ...seen, sentences: lines_of() });
}

function see_canvas() {
  seen = read_canvas(pen);
  see();
}

function see_scene() {
  ask("scene", { ...read_canvas(scene_pen), caption: find("caption").value, language });
}

function show_test_scene() {
  const { images, side } = page.test_scenes;
  const start = Math.floor((Math.random() * images.length) / side ** 2) * side ** 2;
  const dark = picture(images.slice(start, start + side ** 2).map((pixel) => 255 - pixel)); // on white
  scene_pen.imageSmoothingEnabled = false;
  scene_pen.drawImage(dark, 0, 0, scene_pen.canvas.width, scene_pen.canvas.height);
  see_scene();
}

// ---- files and sounds ----

async function see_file(file) {
  if (file.size > MAX_BYTES) return fail("see", "too_large");
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    return fail("see", "not_picture");
  }
  const scale = Math.min(1, MAX_SIDE / Math.max(image.width, image.height));
  const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * scale)));
  const copy = element("canvas", { width, height }).getContext("2d");
  copy.imageSmoothingQuality = "high";
  copy.drawImage(image, 0, 0, width, height);
  seen = read_canvas(copy);
  wipe(pen);
  const fit = pen.canvas.width / Math.max(width, height);
  const [w, h] = [width * fit, height * fit];
  pen.drawImage(copy.canvas, (pen.canvas.width - w) / 2, (pen.canvas.height - h) / 2, w, h);
  see();
}

async function hear_file(file) {
  if (file.size > MAX_BYTES) return fail("hear", "too_large");
  try {
    const decoder = new OfflineAudioContext(1, 1, page.rate); // resamples to this rate
    const decoded = await decoder.decodeAudioData(await file.arrayBuffer());
    const channels = Array.from({ length: decoded.numberOfChannels }, (_, i) => decoded.getChannelData(i));
    const sound = channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
    ask("hear", { sound, sentences: lines_of() });
  } catch {
    fail("hear", "not_sound");
  }
}

let recorder = null;
async function record() {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = ({ data }) => hear_file(data);
    recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      recorder = null;
      translate();
    };
    recorder.start();
    translate();
  } catch {
    recorder = null;
    fail("hear", "microphone");
  }
}

// ---- start, and the language ----

function translate() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = text(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.title = node.ariaLabel = text(node.dataset.label);
  if (recorder) find("record").textContent = text("stop");
  if (!page) return;
  const examples = page.sentences.en.length > 10 ? text("examples") : page.sentences[language];
  const buttons = examples.map((example) => element("button", { onclick: () => search(example) }, example));
  find("examples").replaceChildren(...buttons);
  Object.keys(PLACES).forEach(show);
}

function search(description) {
  find("text").value = description;
  ask("find", { text: description });
}

// What stands in the boxes of text, as long as the user has not changed it.
const defaults = () => ({ sentences: page.sentences[language].join("\n"), caption: text("own_caption") });

function switch_language(to) {
  const before = page ? defaults() : {};
  language = to;
  translate();
  if (!page) return;
  const changed = Object.keys(before).filter((id) => find(id).value === before[id]);
  for (const id of changed) find(id).value = defaults()[id];
  if (changed.includes("sentences")) see();
  if (page.test_scenes) see_scene();
}

function start() {
  for (const [id, value] of Object.entries(defaults())) find(id).value = value;
  if (!page.has.speech) {
    for (const id of ["record", "sound"]) find(id).disabled = true;
    shown.hear = { error: { key: "no_speech" } };
  }
  translate();
  see_canvas();
  find("scenes").hidden = !page.test_scenes;
  if (page.test_scenes) see_scene();
}

find("language").onclick = () => switch_language(language === "en" ? "zh" : "en");
find("sample").onclick = show_test_scene;
find("caption").oninput = see_scene;
find("sentences").oninput = see;
find("record").onclick = record;
find("type").onsubmit = (event) => {
  event.preventDefault();
  search(find("text").value);
};
for (const [id, use] of [["picture", see_file], ["sound", hear_file]]) {
  find(id).onchange = ({ target }) => {
    const [file] = target.files;
    if (file) use(file);
    target.value = ""; // the same file can be chosen again
  };
}
translate();
ask("load", { base64: find("model").textContent });
