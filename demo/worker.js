// The page's worker: it answers the page's questions with towers.js, so that the page never freezes.
"use strict";

const [N_CAPTIONS, N_NEAREST, N_DRAWINGS] = [8, 12, 8];

// An image with what is measured in it. Pixels [28 * 28] in 0..255.
const describe = (model, pixels, digit) => ({ pixels, digit, values: [thickness(model, pixels), slant(pixels)] });

// The test images closest to an embedding, with their labels.
function nearest({ layers: { test }, ...model }, embed) {
  const places = topk(cosines(embed, test), N_NEAREST);
  return places.map((i) => describe(model, test.images.subarray(i * 784, (i + 1) * 784), test.digits[i]));
}

// The sentences closest to an embedding, with their cosines; and why others cannot be read.
const known = new Map(); // embeddings, by function and sentence
function compare(model, embed, sentences, encode = encode_text) {
  const problems = new Map(); // each once
  if (!sentences.length) problems.set("", { key: "no_sentences", what: "" });
  const pairs = [];
  for (const sentence of new Set(sentences)) {
    const key = `${encode.name} ${sentence}`;
    try {
      if (!known.has(key)) known.set(key, encode(model, sentence));
      pairs.push([sentence, dot(embed, known.get(key))]);
    } catch (error) {
      if (!error.key) throw error;
      problems.set(error.message, { key: error.key, what: error.what });
    }
  }
  const captions = pairs.sort((a, b) => b[1] - a[1]).slice(0, N_CAPTIONS);
  return { captions, problems: [...problems.values()] };
}

// A picture, RGBA, and sentences -> what the model finds in it.
function see(model, { rgba, width, height, sentences }) {
  const pixels = photo_to_mnist(model, rgba, width, height);
  if (!pixels.some(Boolean)) throw new InputError("empty");
  const embed = encode_image(model, pixels);
  const answer = { image: describe(model, pixels), reading: read(model, embed), nearest: nearest(model, embed) };
  return { ...answer, ...compare(model, embed, sentences) };
}

// A drawing of two digits, RGBA, and a caption -> the nearest captions of scenes in a language; and of the user's own
// caption and the same with its digits exchanged, which is nearer.
function see_scene(model, { rgba, width, caption, language }) {
  const pixels = drawing_to_scene(model, rgba, width);
  if (!pixels.some(Boolean)) throw new InputError("empty_scene");
  const embed = encode_scene(model, pixels);
  const own = compare(model, embed, exchange_digits(caption), encode_caption);
  return { own, ...compare(model, embed, model.scenes.captions[language], encode_caption) };
}

// RGBA [width * width * 4], black on white -> pixels [48 * 48] in 0..255, bright on black: the means of squares of the
// drawing. The digits stay where and as large as they were drawn: the page's frames are where scenes.py puts them.
function drawing_to_scene({ scenes: { side } }, rgba, width) {
  const size = width / side;
  const sums = box_sum(Float32Array.from({ length: width ** 2 }, (_, i) => 255 - rgba[4 * i]), width, width, size);
  const middle = (place) => place * size + (size >> 1); // of a square
  const at = (row, column) => sums[middle(row) * width + middle(column)];
  return Uint8Array.from({ length: side ** 2 }, (_, i) => Math.round(at(Math.floor(i / side), i % side) / size ** 2));
}

// A caption -> it, and the same with its two digits exchanged; it alone if it does not name two. (一个 is "a".)
const DIGIT = new RegExp(`\\b(?:[0-9]|${DIGIT_WORDS.join("|")})\\b|[零二三四五六七八九]|一(?!个)`, "gi");
function exchange_digits(caption) {
  const digits = caption.match(DIGIT) ?? [];
  if (digits.length !== 2) return [caption];
  const exchanged = caption.replaceAll(DIGIT, () => digits.pop()).replaceAll(/\b(a)n?(?= )/gi, "$1");
  return [caption, exchanged.replaceAll(/\b(a)(?= (?:8|[aeiou](?!ne\b)))/gi, "$1n")];
}

// A sound at 8 kHz and sentences -> what the model hears; `embed` is for drawings.
function hear(model, { sound, sentences }) {
  if (!sound.length) throw new InputError("silence");
  const embed = encode_speech(model, sound);
  return { embed, nearest: nearest(model, embed), ...compare(model, embed, sentences) };
}

// A description -> the test images that fit best; `embed` is for drawings.
function find(model, { text }) {
  const embed = encode_text(model, text);
  return { embed, nearest: nearest(model, embed) };
}

// An embedding -> one drawing, with the digit that the model reads in it.
function draw(model, embed) {
  const sizes = ["prior", "decoder"].map((path) => model.layers[`${path}.proj_out`].bias.length);
  const pixels = sample(model, embed, ...sizes.map(randn));
  return describe(model, pixels, read(model, encode_image(model, pixels)).digit);
}

// Messages: {id, kind, ...question} -> {id, kind, answer} or {id, kind, error}; drawings follow one by one, as long as
// no newer question of their kind has come.
const latest = {};
let loading;
if (typeof importScripts !== "undefined") {
  onmessage = async ({ data: { id, kind, ...question } }) => {
    latest[kind] = id;
    try {
      loading ??= load_model(question.base64);
      const model = await loading;
      if (latest[kind] !== id) return;
      if (kind === "load") {
        const { layers, sentences, outliers, speech, scenes } = model;
        const has = { generator: "prior.proj_in" in layers, speech: "speech.projection" in layers };
        const test_scenes = scenes && { ...layers["test.scenes"], side: scenes.side };
        return postMessage({ id, kind, answer: { has, sentences, outliers, rate: speech.rate, test_scenes } });
      }
      const { embed, ...answer } = { see, hear, find, scene: see_scene }[kind](model, question);
      postMessage({ id, kind, answer });
      if (!embed || !model.layers["prior.proj_in"]) return;
      for (let count = 1; count <= N_DRAWINGS; count++) {
        await new Promise((resume) => setTimeout(resume)); // newer questions come in
        if (latest[kind] !== id) return;
        postMessage({ id, kind, drawing: draw(model, embed), progress: count / N_DRAWINGS });
      }
    } catch (error) {
      if (!error.key) console.error(error);
      postMessage({ id, kind, error: { key: error.key ?? "failed", what: error.what ?? String(error) } });
    }
  };
}
