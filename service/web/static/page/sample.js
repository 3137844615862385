// A photograph for who has none at hand, drawn by code: a ship at sea.

const [WIDTH, HEIGHT] = [512, 384];

/** PNG bytes as a Blob; the same picture every time. */
export function drawSample() {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: WIDTH, height: HEIGHT });
  const ink = canvas.getContext("2d");
  drawSky(ink);
  drawSea(ink);
  drawShip(ink);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** @param {CanvasRenderingContext2D} ink */
function drawSky(ink) {
  const sky = ink.createLinearGradient(0, 0, 0, 230);
  sky.addColorStop(0, "#7fa9d0");
  sky.addColorStop(1, "#dfe6ea");
  ink.fillStyle = sky;
  ink.fillRect(0, 0, WIDTH, HEIGHT);
  ink.fillStyle = "#f2f4f5";
  for (const [x, y, size] of [[90, 62, 26], [122, 54, 34], [160, 64, 24], [404, 90, 18], [428, 84, 25], [455, 92, 17]]) {
    ink.beginPath();
    ink.ellipse(x, y, size * 1.5, size * 0.6, 0, 0, 7);
    ink.fill();
  }
}

/** @param {CanvasRenderingContext2D} ink */
function drawSea(ink) {
  const sea = ink.createLinearGradient(0, 225, 0, HEIGHT);
  sea.addColorStop(0, "#3f6f8f");
  sea.addColorStop(1, "#173f5a");
  ink.fillStyle = sea;
  ink.fillRect(0, 225, WIDTH, HEIGHT);
  ink.strokeStyle = "rgba(220, 235, 240, 0.35)";
  for (let wave = 0; wave < 90; wave += 1) {
    const y = 238 + ((wave * 37) % 140);
    const x = (wave * 113) % WIDTH;
    ink.lineWidth = 1 + (y - 238) / 60;
    ink.beginPath();
    ink.moveTo(x, y);
    ink.quadraticCurveTo(x + 12, y - 5, x + 26, y);
    ink.stroke();
  }
}

/** @param {CanvasRenderingContext2D} ink */
function drawShip(ink) {
  shape(ink, "#8e2f2a", [[78, 262], [440, 262], [404, 312], [118, 312]]);
  shape(ink, "#2a2d33", [[64, 226], [458, 226], [440, 264], [78, 264]]);
  shape(ink, "#eceae2", [[120, 186], [380, 186], [380, 226], [112, 226]]);
  shape(ink, "#dcd8cb", [[150, 150], [330, 150], [336, 186], [150, 186]]);
  shape(ink, "#c8553d", [[200, 92], [240, 92], [244, 150], [198, 150]]);
  shape(ink, "#c8553d", [[270, 98], [306, 98], [310, 150], [268, 150]]);
  shape(ink, "#26282c", [[200, 92], [240, 92], [241, 106], [199, 106]]);
  shape(ink, "#26282c", [[270, 98], [306, 98], [307, 111], [269, 111]]);
  ink.fillStyle = "#39536b";
  for (let x = 132; x < 372; x += 24) ink.fillRect(x, 200, 12, 11);
  for (let x = 162; x < 325; x += 22) ink.fillRect(x, 163, 12, 10);
  ink.strokeStyle = "#4a4d52";
  ink.lineWidth = 3;
  for (const [from, to] of [[[410, 226], [410, 120]], [[92, 226], [92, 140]], [[410, 124], [306, 100]], [[92, 144], [200, 94]]]) {
    ink.beginPath();
    ink.moveTo(from[0], from[1]);
    ink.lineTo(to[0], to[1]);
    ink.stroke();
    ink.lineWidth = 2;
  }
}

/**
 * @param {CanvasRenderingContext2D} ink
 * @param {string} colour
 * @param {Point[]} points
 */
function shape(ink, colour, points) {
  ink.fillStyle = colour;
  ink.beginPath();
  for (const [x, y] of points) ink.lineTo(x, y);
  ink.fill();
}
