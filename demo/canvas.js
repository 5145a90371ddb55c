// Runs once, when the canvas stands on the page. `element`, `props` and `trigger` come from Gradio; a new value of
// `props.value`, the drawing as a PNG, asks the model.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const width = element.querySelector("input");
let isEmpty = true;
let pointer = null; // the mouse, pen or finger that draws; all others are ignored until it leaves

function send() {
  props.value = isEmpty ? "" : canvas.toDataURL("image/png");
}

function clear() {
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  isEmpty = true;
  send();
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [
    ((event.clientX - box.left) * canvas.width) / box.width,
    ((event.clientY - box.top) * canvas.height) / box.height,
  ];
}

canvas.addEventListener("pointerdown", (event) => {
  if (pointer !== null || event.button !== 0) return;
  event.preventDefault();
  pointer = event.pointerId;
  canvas.setPointerCapture(pointer);
  pen.lineWidth = width.value;
  pen.lineCap = pen.lineJoin = "round";
  pen.strokeStyle = "black";
  pen.beginPath();
  pen.moveTo(...place(event));
  pen.lineTo(...place(event)); // a tap is a dot
  pen.stroke();
  isEmpty = false;
});

canvas.addEventListener("pointermove", (event) => {
  if (event.pointerId !== pointer) return;
  const steps = event.getCoalescedEvents?.() ?? [];
  for (const step of steps.length ? steps : [event]) pen.lineTo(...place(step));
  pen.stroke();
});

for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
  canvas.addEventListener(name, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    send();
  });
}

element.querySelector(".clear").addEventListener("click", clear);
clear();
