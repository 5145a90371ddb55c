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

// A sentence -> its embedding, which is kept.
const known = new Map();
function embed_sentence(model, sentence) {
  if (!known.has(sentence)) known.set(sentence, encode_text(model, sentence));
  return known.get(sentence);
}

// The sentences closest to an embedding, with their cosines; and why others cannot be read.
function compare(model, embed, sentences) {
  const problems = sentences.length ? [] : [{ key: "no_sentences", what: "" }];
  const pairs = [];
  for (const sentence of new Set(sentences)) {
    try {
      pairs.push([sentence, dot(embed, embed_sentence(model, sentence))]);
    } catch (error) {
      problems.push({ key: error.key, what: error.what });
    }
  }
  return { captions: pairs.sort((a, b) => b[1] - a[1]).slice(0, N_CAPTIONS), problems };
}

// A picture, RGBA, and sentences -> what the model finds in it.
function see(model, { rgba, width, height, sentences }) {
  const pixels = photo_to_mnist(model, rgba, width, height);
  if (!pixels.some(Boolean)) throw new InputError("empty");
  const embed = encode_image(model, pixels);
  const answer = { image: describe(model, pixels), reading: read(model, embed), nearest: nearest(model, embed) };
  return { ...answer, ...compare(model, embed, sentences) };
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
        const { layers, sentences, outliers, speech } = model;
        const has = { generator: "prior.proj_in" in layers, speech: "speech.projection" in layers };
        return postMessage({ id, kind, answer: { has, sentences, outliers, rate: speech.rate } });
      }
      const { embed, ...answer } = { see, hear, find }[kind](model, question);
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
