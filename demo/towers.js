// The towers of MINIST-CLIP in plain JavaScript: what PyTorch does in image_encoder.py, text_encoder.py,
// generation/model.py and modalities/speech.py, with the same names. No library.
//
// Numbers lie in flat typed arrays, rows one after the other; comments give the shapes. A map is {height, width,
// channels, data}, its data [height, width, channels], so that a convolution is a linear layer on patches.
"use strict";

// ---- weights ----

// The page's data, as demo/build.py packed them: base64 of zlib of (length of the header, header as JSON, tensors).
// -> the header, `layers`, which has the tensors of a module by its path, such as layers["image.projection"].weight.
async function load_model(base64) {
  const text = atob(base64.trim());
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = await new Response(stream).arrayBuffer();
  const length = new Uint32Array(bytes, 0, 1)[0];
  const model = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  model.layers = {};
  let offset = 4 + length;
  for (const [name, type, shape] of model.tensors) {
    const size = shape.reduce((product, side) => product * side, 1);
    const content = bytes.slice(offset, (offset += size * { uint8: 1, int8: 1, float16: 2, float32: 4 }[type]));
    const dot = name.lastIndexOf(".");
    const layer = (model.layers[name.slice(0, dot)] ??= {});
    const key = name.slice(dot + 1);
    layer[key] = unpack(type, content, layer[`${key}_scale`]);
    if (key === "weight") layer.shape = shape;
  }
  return model;
}

// int8 weights have a scale for each row; it stands before them.
function unpack(type, content, scale) {
  if (type === "uint8") return new Uint8Array(content);
  if (type === "float32") return new Float32Array(content);
  if (type === "float16") return Float32Array.from(new Uint16Array(content), float16);
  const values = new Int8Array(content);
  const columns = values.length / scale.length;
  return Float32Array.from(values, (value, i) => value * scale[Math.floor(i / columns)]);
}

// The bits of a float16 -> its value: a sign, 5 bits of exponent, 10 of fraction.
function float16(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = (bits & 1023) / 1024;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction) : 2 ** -14 * fraction);
}

// ---- layers ----

// Rows [N, K] and a layer of weight [M, K] and bias [M] -> [N, M].
function linear(rows, { weight, bias }) {
  const outputs = bias.length;
  const inputs = weight.length / outputs;
  const count = rows.length / inputs;
  const result = new Float32Array(count * outputs);
  for (let n = 0; n < count; n++) {
    for (let m = 0; m < outputs; m++) {
      let sum = bias[m];
      let other = 0; // a second sum: the processor adds to both at once
      const row = n * inputs;
      const column = m * inputs;
      let k = 0;
      for (; k + 3 < inputs; k += 4) {
        sum += rows[row + k] * weight[column + k] + rows[row + k + 1] * weight[column + k + 1];
        other += rows[row + k + 2] * weight[column + k + 2] + rows[row + k + 3] * weight[column + k + 3];
      }
      for (; k < inputs; k++) sum += rows[row + k] * weight[column + k];
      result[n * outputs + m] = sum + other;
    }
  }
  return result;
}

// A map and a layer of weight [out, kernel, kernel, channels] -> a map of `out` channels. The batch norm behind it is
// folded into weight and bias. The border is padded with zeros, so that with stride 1 the size stays.
function conv(map, layer, stride = 1) {
  const { height, width, channels, data } = map;
  const kernel = layer.shape[1];
  const padding = kernel >> 1;
  const out = { height: Math.ceil(height / stride), width: Math.ceil(width / stride), channels: layer.bias.length };
  const patches = new Float32Array(out.height * out.width * kernel * kernel * channels); // [out pixels, a patch]
  let place = 0;
  for (let row = 0; row < out.height; row++) {
    for (let column = 0; column < out.width; column++) {
      for (let y = row * stride - padding; y < row * stride - padding + kernel; y++) {
        for (let x = column * stride - padding; x < column * stride - padding + kernel; x++) {
          if (y >= 0 && y < height && x >= 0 && x < width) {
            const start = (y * width + x) * channels;
            for (let c = 0; c < channels; c++) patches[place + c] = data[start + c];
          }
          place += channels;
        }
      }
    }
  }
  return { ...out, data: linear(patches, layer) };
}

const on_map = (f) => (map) => ({ ...map, data: map.data.map(f) });
const relu = on_map((value) => Math.max(0, value));
const sigmoid = (value) => 1 / (1 + Math.exp(-value));
const silu = (vector) => vector.map((value) => value * sigmoid(value));
const largest = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

const add = (a, b) => a.map((value, i) => value + b[i]);

// Values [N] -> positive shares of the sum 1.
function softmax(values) {
  const most = largest(values);
  const exp = values.map((value) => Math.exp(value - most));
  const sum = exp.reduce((total, value) => total + value, 0);
  return exp.map((value) => value / sum);
}

function residual_block(map, layers, path) {
  const inner = relu(conv(map, layers[`${path}.branch.0`]));
  const branch = conv(inner, layers[`${path}.branch.3`]);
  return relu({ ...map, data: add(map.data, branch.data) });
}

// A vector [D] -> the same of length 1.
function normalize(vector) {
  const length = Math.max(Math.sqrt(dot(vector, vector)), 1e-12);
  return vector.map((value) => value / length);
}

// A vector [D] -> the same with mean 0 and variance 1; then times weight, plus bias, if the layer has them.
function layer_norm(vector, { weight, bias } = {}) {
  const mean = vector.reduce((sum, value) => sum + value, 0) / vector.length;
  const variance = vector.reduce((sum, value) => sum + (value - mean) ** 2, 0) / vector.length;
  const normed = vector.map((value) => (value - mean) / Math.sqrt(variance + 1e-5));
  return weight ? normed.map((value, i) => value * weight[i] + bias[i]) : normed;
}

// ---- image towers ----

// Pixels [side * side] in 0..255, bright on black -> the last map of the tower at a path.
function encode_map({ layers, pixel_mean, pixel_std }, path, pixels) {
  const side = Math.sqrt(pixels.length);
  const data = Float32Array.from(pixels, (pixel) => (pixel / 255 - pixel_mean) / pixel_std);
  let map = { height: side, width: side, channels: 1, data };
  for (const stage of [0, 4, 8]) { // of a digit [14, 14, width], [7, 7, 2 * width], [4, 4, 4 * width]
    map = relu(conv(map, layers[`${path}.stages.${stage}`], 2));
    map = residual_block(map, layers, `${path}.stages.${stage + 3}`);
  }
  return map;
}

// Pixels [28 * 28] of a digit -> a unit vector [embed_dim].
function encode_image(model, pixels) {
  const { channels, height, width, data } = encode_map(model, "image", pixels);
  const mean = new Float32Array(channels); // over the map, which forgets where in the image something is
  data.forEach((value, i) => (mean[i % channels] += value / (height * width)));
  return normalize(linear(mean, model.layers["image.projection"]));
}

// Pixels [48 * 48] of a scene of two digits -> a unit vector [embed_dim]. The whole map counts: it keeps places.
function encode_scene(model, pixels) {
  const { channels, height, width, data } = encode_map(model, "scenes.image", pixels); // [6, 6, channels]
  const area = height * width;
  const flat = data.map((_, i) => data[(i % area) * channels + Math.floor(i / area)]); // [channels, 6, 6], as PyTorch's
  return normalize(linear(flat, model.layers["scenes.image.projection"]));
}

// ---- text tower: a bag of words ----

const DIGIT_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
// Python's \w is a letter, any kind of number or _; its \d is \p{Nd}. A Han character is a word by itself.
const HAN = "[\u4e00-\u9fff]";
const LETTER = `(?:(?!${HAN})[\\p{L}\\p{Nl}\\p{No}])`;
const NUMBER = `[-+]?\\p{Nd}+(?:[.,]\\p{Nd}+)*(?:(?!${HAN})[\\p{L}\\p{N}_])*`;
const TOKEN = new RegExp(`${HAN}|${NUMBER}|${LETTER}+(?:'${LETTER}+)*`, "gu");
const CLAUSE_END = /[,;:.](?=\s|$)|[，；：。、]/u;

// "a thick 7" -> ["a", "thick", "seven"].
function words_of(text) {
  text = text.toLowerCase().replaceAll("\u2019", "'").replaceAll("\u2212", "-");
  const words = text.replace(/([\p{L}\p{N}_])-/gu, "$1 ").match(TOKEN) ?? [];
  return words.map((word) => (/^[0-9]$/.test(word) ? DIGIT_WORDS[word] : word));
}

// The same, each word with whether it stands behind "not", "no", "anything but" or 不是, before the next comma.
function negated_words(text) {
  const words = [];
  for (const clause of text.split(CLAUSE_END)) {
    let is_negated = false;
    words_of(clause).forEach((word, i, own) => {
      words.push([word, is_negated]);
      is_negated ||= word === "not" || word === "no" || (word === "不" && own[i + 1] === "是");
      is_negated ||= word === "but" && own[i - 1] === "anything";
    });
  }
  return words;
}

// Invalid input: a key of the page's sentences, and what the sentence names.
class InputError extends Error {
  constructor(key, what = "") {
    super(`${key} ${what}`);
    Object.assign(this, { key, what });
  }
}

// A text -> its words' rows in a table, each with whether the word is negated. Raises InputError for a text without
// words, with an unknown one, or with more than `most`.
function tokenize(text, vocabulary, most = Infinity) {
  const words = negated_words(text);
  if (!words.length) throw new InputError("no_word");
  if (words.length > most) throw new InputError("many_words", most);
  if (/不(?!是)/u.test(text)) throw new InputError("lone_not");
  return words.map(([word, is_negated]) => {
    const row = vocabulary.indexOf(word) + 1; // row 0 is padding
    if (row === 0) throw new InputError("unknown_word", word);
    return [row, is_negated];
  });
}

// A text -> a unit vector [embed_dim]: the sum of its words' vectors, through a linear layer. The vector of a negated
// word is multiplied by `negation`. Raises InputError as `tokenize`.
function encode_text({ layers, vocabulary }, text) {
  const { weight: table, negation } = { ...layers["text.table"], ...layers["text"] }; // [words + 1, dim], [dim]
  const sum = new Float32Array(negation.length);
  for (const [row, is_negated] of tokenize(text, vocabulary)) {
    for (let i = 0; i < sum.length; i++) sum[i] += table[row * sum.length + i] * (is_negated ? negation[i] : 1);
  }
  return normalize(linear(sum, layers["text.linear"]));
}

// ---- text tower of scenes: a transformer, in which the order of words counts ----

// A caption -> a unit vector [embed_dim], by the mean of its words. Each is its own vector plus that of its place, to
// which each block adds what it takes from all words, then what two layers make of it. Raises as `tokenize`.
function encode_caption({ layers, scenes }, caption) {
  const [table, places] = ["table", "places"].map((name) => layers[`scenes.text.${name}`]);
  const row = ({ weight, shape: [, width] }, i) => weight.subarray(i * width, (i + 1) * width);
  const tokens = tokenize(caption, scenes.vocabulary, scenes.max_words);
  let words = tokens.map(([token], place) => add(row(table, token), row(places, place))); // [L][width]
  for (let block = 0; layers[`scenes.text.attention.layers.${block}.norm1`]; block++) {
    const layer = (name) => layers[`scenes.text.attention.layers.${block}.${name}`];
    const taken = self_attention(words.map((word) => layer_norm(word, layer("norm1"))), layer, scenes.heads);
    words = words.map((word, i) => add(word, taken[i]));
    words = words.map((word) => {
      const hidden = linear(layer_norm(word, layer("norm2")), layer("linear1")).map((value) => Math.max(0, value));
      return add(word, linear(hidden, layer("linear2")));
    });
  }
  const sum = words.map((word) => layer_norm(word, layers["scenes.text.attention.norm"])).reduce(add);
  return normalize(linear(sum.map((value) => value / words.length), layers["scenes.text.projection"]));
}

// Words [L][width] -> the same form: each word takes the mean of all words' values, weighted by how well their keys fit
// its query. It does so in each head by itself, with a query, keys and values of width / heads numbers.
function self_attention(words, layer, heads) {
  const { in_proj_weight: weight, in_proj_bias: bias } = layer("self_attn");
  const size = bias.length / 3 / heads;
  const projected = words.map((word) => linear(word, { weight, bias })); // [L][3 * width]: queries, keys, values
  const of_head = (part, head) => projected.map((row) => row.subarray((part * heads + head) * size).subarray(0, size));
  const means = words.map(() => new Float32Array(heads * size)); // [L][width]
  for (let head = 0; head < heads; head++) {
    const [queries, keys, values] = [0, 1, 2].map((part) => of_head(part, head)); // [L][size] each
    queries.forEach((query, word) => {
      const shares = softmax(keys.map((key) => dot(query, key) / Math.sqrt(size))); // [L]
      const mean = values.map((value, i) => value.map((x) => x * shares[i])).reduce(add); // [size]
      means[word].set(mean, head * size);
    });
  }
  return means.map((mean) => linear(mean, layer("self_attn.out_proj")));
}

// ---- what the captions say of an image ----

// Embedding [D] and the rows of a table [N, D] of embeddings -> cosines [N].
function cosines(embed, { weight: table }) {
  const size = embed.length;
  const row = (i) => table.subarray(i * size, (i + 1) * size);
  return Float32Array.from({ length: table.length / size }, (_, i) => dot(embed, row(i)));
}

const argmax = (values) => values.indexOf(largest(values));

// Cosines [N] -> the places of the `count` largest, the largest first.
function topk(values, count) {
  return Array.from(values.keys()).sort((a, b) => values[b] - values[a]).slice(0, count);
}

// Embedding [D] -> whether it is that of a digit; the nearest digit and the nearest kind of outlier; and of each
// attribute the most probable bin and the expected grade, in 0..4.
function read({ layers, part_temperature, min_score }, embed) {
  const digits = cosines(embed, layers["captions.digit"]); // [10]
  const score = largest(digits);
  const reading = { is_digit: score > min_score, digit: argmax(digits), outlier: null, bins: [], grades: [] };
  if (!layers["captions.outliers"]) return reading; // captions that name the digit alone
  const outliers = cosines(embed, layers["captions.outliers"]); // [1 + kinds], the first is generic
  reading.is_digit = score - largest(outliers) > min_score;
  reading.outlier = argmax(outliers.subarray(1));
  for (const name of ["thickness", "slant"]) {
    const probs = softmax(cosines(embed, layers[`captions.${name}`]).map((cosine) => cosine / part_temperature)); // [5]
    reading.bins.push(argmax([probs[0] + probs[1], probs[2], probs[3] + probs[4]]));
    reading.grades.push(probs.reduce((mean, p, grade) => mean + p * grade, 0));
  }
  return reading;
}

// ---- attributes, measured: attributes.py ----

// Pixels [28 * 28] in 0..255 -> stroke thickness in pixels: from ink and outline, with more contrast.
function thickness({ thickness_factor, thickness_offset }, pixels) {
  const sharp = (row, column) => {
    const is_inside = row >= 0 && row < 28 && column >= 0 && column < 28;
    return is_inside ? Math.min(1, Math.max(0, (2 * pixels[row * 28 + column]) / 255 - 0.5)) : 0;
  };
  let [ink, outline] = [0, 0];
  for (let row = 0; row <= 28; row++) {
    for (let column = 0; column <= 28; column++) {
      ink += sharp(row, column);
      const right = sharp(row - 1, column) - sharp(row - 1, column - 1);
      outline += Math.hypot(right, sharp(row, column - 1) - sharp(row - 1, column - 1));
    }
  }
  return outline > 0 ? (thickness_factor * ink) / Math.max(outline, 1e-6) + thickness_offset : 0;
}

// Pixels [28 * 28] in 0..255 -> slant in radians, from the grey moments; positive leans right.
function slant(pixels) {
  let [mass, x, y, xy, yy] = [0, 0, 0, 0, 0];
  pixels.forEach((pixel, i) => {
    const [row, column] = [Math.floor(i / 28), i % 28];
    mass += pixel;
    x += pixel * column;
    y += pixel * row;
    xy += pixel * column * row;
    yy += pixel * row * row;
  });
  if (!mass) return 0;
  const u11 = xy / mass - (x / mass) * (y / mass);
  const u02 = yy / mass - (y / mass) ** 2;
  return Math.atan2(-u11, Math.max(u02, 1e-6));
}

// ---- generator: flows from noise to an image's embedding, then to a latent, which is decoded ----

// A layer, SiLU, a layer.
const mlp = (x, layers, path) => linear(silu(linear(x, layers[`${path}.0`])), layers[`${path}.2`]);

// Point [dim], time in 0..1 and the embedded condition [width] -> velocity [dim].
function velocity({ layers, frequencies }, path, x, t, condition) {
  const angles = Float32Array.from({ length: frequencies }, (_, i) => (t * (i + 1) * Math.PI) / 2);
  const waves = Float32Array.of(...angles.map(Math.sin), ...angles.map(Math.cos)); // [2 * frequencies]
  const time = mlp(waves, layers, `${path}.time_embed`); // [width]
  condition = silu(time.map((value, i) => value + condition[i]));
  x = linear(x, layers[`${path}.proj_in`]); // [width]
  for (let block = 0; layers[`${path}.blocks.${block}.modulation`]; block++) {
    const width = x.length;
    const modulation = linear(condition, layers[`${path}.blocks.${block}.modulation`]); // scale, shift, gate
    const inner = layer_norm(x).map((value, i) => value * (1 + modulation[i]) + modulation[width + i]);
    const branch = mlp(inner, layers, `${path}.blocks.${block}.mlp`);
    x = x.map((value, i) => value + modulation[2 * width + i] * branch[i]);
  }
  return linear(layer_norm(x), layers[`${path}.proj_out`]);
}

// Condition [condition_dim] and noise [dim] -> a vector [dim], by steps of Heun's method.
function sample_flow(model, path, condition, noise) {
  const embedded = mlp(condition, model.layers, `${path}.condition_embed`); // [width], the same in all steps
  const size = 1 / model.steps;
  let x = noise;
  for (let step = 0; step < model.steps; step++) {
    const first = velocity(model, path, x, step * size, embedded);
    const ahead = x.map((value, i) => value + size * first[i]);
    const second = velocity(model, path, ahead, (step + 1) * size, embedded);
    x = x.map((value, i) => value + (size / 2) * (first[i] + second[i]));
  }
  return x;
}

// A text's unit vector [embed_dim] and noise [embed_dim], [latent_dim] -> pixels [28 * 28] in 0..255: one drawing.
function sample(model, text_embed, prior_noise, decoder_noise) {
  const scaled = (vector) => vector.map((value) => value * Math.sqrt(vector.length)); // variance 1
  const image_embed = normalize(sample_flow(model, "prior", scaled(text_embed), prior_noise));
  return decode(model, sample_flow(model, "decoder", scaled(image_embed), decoder_noise));
}

// A latent [latent_dim] -> pixels [28 * 28] in 0..255.
function decode({ layers, sharpen, darken }, latent) {
  const path = "autoencoder.decoder";
  const hidden = linear(latent, layers[`${path}.0`]); // [channels, 7, 7]
  const channels = hidden.length / 49;
  const data = hidden.map((_, i) => hidden[(i % channels) * 49 + Math.floor(i / channels)]); // [7, 7, channels]
  let map = residual_block({ height: 7, width: 7, channels, data }, layers, `${path}.2`);
  map = relu(pixel_shuffle(conv(map, layers[`${path}.3`]))); // [14, 14, channels / 2]
  map = residual_block(map, layers, `${path}.7`);
  const logits = pixel_shuffle(conv(map, layers[`${path}.8`])).data; // [28, 28, 1]
  return Uint8Array.from(logits, (logit) => Math.round(255 * sigmoid(sharpen * (logit - darken))));
}

// [height, width, 4 * channels] -> [2 * height, 2 * width, channels].
function pixel_shuffle({ height, width, channels, data }) {
  const out = { height: 2 * height, width: 2 * width, channels: channels / 4, data: new Float32Array(data.length) };
  data.forEach((value, i) => {
    const [pixel, channel] = [Math.floor(i / channels), i % channels];
    const row = 2 * Math.floor(pixel / width) + ((channel >> 1) & 1);
    const column = 2 * (pixel % width) + (channel & 1);
    out.data[(row * out.width + column) * out.channels + (channel >> 2)] = value;
  });
  return out;
}

// [size] numbers of a normal distribution (Box and Muller, 1958).
function randn(size) {
  const radius = () => Math.sqrt(-2 * Math.log(1 - Math.random()));
  return Float32Array.from({ length: size }, () => radius() * Math.cos(2 * Math.PI * Math.random()));
}

// ---- speech tower ----

// Waveform [T] at 8 kHz -> power [40, 64]: the loudest second of a long sound, zeros on both sides of a short one.
function mel_spectrogram({ layers, speech }, sound) {
  const { window, hop, mels: bands, frames, quiet, silence } = speech;
  const mean = sound.reduce((sum, value) => sum + value, 0) / sound.length;
  sound = sound.map((value) => value - mean);
  const loudest = sound.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (!(loudest >= silence)) throw new InputError("silence");
  sound = sound.map((value) => value / loudest);
  const bins = window / 2 + 1;
  const angle = (i) => (2 * Math.PI * i) / window;
  const cos = Float64Array.from({ length: window }, (_, i) => Math.cos(angle(i)));
  const sin = Float64Array.from({ length: window }, (_, i) => Math.sin(angle(i)));
  const count = 1 + Math.floor(Math.max(sound.length, window) / hop);
  const powers = Array.from({ length: count }, (_, frame) => {
    const start = frame * hop - window / 2; // zeros before the beginning and behind the end
    const piece = Float64Array.from(cos, (c, i) => (sound[start + i] ?? 0) * (0.5 - 0.5 * c)); // Hann's window
    return Float32Array.from({ length: bins }, (_, k) => {
      let [real, imaginary] = [0, 0]; // of the discrete Fourier transform
      for (let i = 0; i < window; i++) {
        real += piece[i] * cos[(k * i) % window];
        imaginary += piece[i] * sin[(k * i) % window];
      }
      return real ** 2 + imaginary ** 2;
    });
  });
  const loudness = powers.map((power) => power.reduce((sum, value) => sum + value, 0));
  const least = quiet * largest(loudness);
  const is_loud = loudness.map((value) => value > least);
  const kept = powers.slice(is_loud.indexOf(true), is_loud.lastIndexOf(true) + 1); // without quiet ends
  const columns = kept.map((power) => cosines(power, layers["speech.mel_bands"])); // [frames][40]
  const missing = Math.max(0, frames - columns.length);
  const silent = (length) => Array.from({ length }, () => new Float32Array(bands));
  const padded = [...silent(missing >> 1), ...columns, ...silent(missing - (missing >> 1))];
  const sums = padded.map((column) => column.reduce((sum, value) => sum + value, 0));
  const starts = Array.from({ length: padded.length - frames + 1 }, (_, i) => i);
  const start = argmax(starts.map((i) => sums.slice(i, i + frames).reduce((sum, value) => sum + value, 0)));
  return Float32Array.from({ length: bands * frames }, (_, i) => padded[start + (i % frames)][Math.floor(i / frames)]);
}

// Power [40, 64] -> its logarithm, of mean 0 and variance 1.
function standardized_log_mel({ speech }, mels) {
  const mean_of = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const power = Math.max(mean_of(mels), 1e-12);
  const log = mels.map((value) => Math.log(value / power + speech.floor));
  const mean = mean_of(log);
  const variance = log.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (log.length - 1);
  return log.map((value) => (value - mean) / Math.max(Math.sqrt(variance), 1e-3));
}

// Waveform [T] at 8 kHz -> a unit vector [embed_dim].
function encode_speech(model, sound) {
  const { layers, speech } = model;
  const data = standardized_log_mel(model, mel_spectrogram(model, sound));
  let map = { height: speech.mels, width: speech.frames, channels: 1, data };
  map = relu(conv(map, layers["speech.stages.0"], 2)); // [20, 32, width]
  map = relu(conv(map, layers["speech.stages.3"], 2)); // [10, 16, 2 * width]
  map = residual_block(map, layers, "speech.stages.6");
  map = relu(conv(map, layers["speech.stages.7"], 2)); // [5, 8, 4 * width]
  map = residual_block(map, layers, "speech.stages.10");
  const { height, width, channels } = map;
  const means = new Float32Array(channels * height); // over time: [channels, height]
  map.data.forEach((value, i) => {
    means[(i % channels) * height + Math.floor(i / (channels * width))] += value / width;
  });
  return normalize(linear(means, layers["speech.projection"]));
}
