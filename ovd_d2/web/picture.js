// Draws a box on the picture with mouse, pen or finger. `element`, `props` and `trigger` are gradio's.
const picture = () => element.querySelector('img');
const band = () => element.querySelector('.band');
let start = null;

// Where a pointer is, in shares of the picture's width and height.
function place(event) {
  const frame = picture().getBoundingClientRect();
  const share = (value, from, length) => Math.min(1, Math.max(0, (value - from) / length));
  return [
    share(event.clientX, frame.left, frame.width),
    share(event.clientY, frame.top, frame.height),
  ];
}

function boxTo(event) {
  const [x, y] = place(event);
  return [
    Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y),
  ];
}

function draw([left, top, right, bottom]) {
  Object.assign(band().style, {
    left: `${100 * left}%`,
    top: `${100 * top}%`,
    width: `${100 * (right - left)}%`,
    height: `${100 * (bottom - top)}%`,
  });
}

function stop() {
  start = null;
  if (band()) band().hidden = true;
}

element.addEventListener('pointerdown', (event) => {
  if (!props.marking || event.target !== picture()) return;
  event.preventDefault();
  element.setPointerCapture(event.pointerId);
  start = place(event);
  draw(boxTo(event));
  band().hidden = false;
});
element.addEventListener('pointermove', (event) => {
  if (start) draw(boxTo(event));
});
element.addEventListener('pointerup', (event) => {
  if (!start) return;
  const box = boxTo(event);
  stop();
  trigger('box', {box});
});
element.addEventListener('pointercancel', stop);
