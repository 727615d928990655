// Heads in a canvas: WebGL of the mesh, its expressions and its light. Nothing here asks the server.
// Coordinates and light are those of caphuman_jax.head: x right, y up, z towards the viewer.

const VERTEX = `
attribute vec3 point, normal, color;
attribute float height;   // in the shape, whatever the expression
uniform mat3 turn;
uniform vec4 place;   // center x, y and scale x, y in clip space
uniform float depth;
uniform vec2 neck;    // heights between which the neck fades
varying vec3 vNormal, vColor;
varying float vThere;
void main() {
  vThere = smoothstep(neck.x, neck.y, height);
  vec3 posed = turn * point;
  vNormal = turn * normal;
  vColor = color;
  gl_Position = vec4(place.xy + place.zw * posed.xy, -depth * posed.z, 1.0);
}`;

const FRAGMENT = `
precision mediump float;
uniform vec3 light[9];
uniform float fade;
varying vec3 vNormal, vColor;
varying float vThere;
void main() {
  vec3 n = normalize(vNormal);
  vec3 shade = light[0] + light[1] * n.x + light[2] * n.y + light[3] * n.z
    + light[4] * n.x * n.y + light[5] * n.x * n.z + light[6] * n.y * n.z
    + light[7] * (n.x * n.x - n.y * n.y) + light[8] * (3.0 * n.z * n.z - 1.0);
  gl_FragColor = vec4(clamp(vColor * shade, 0.0, 1.0) * fade, 1.0) * vThere;
}`;

// Pixels drawn over pixels of the page, in each direction: FINE where a head is still, COARSE of
// them at the least while it moves. More than one smooths the edges. The browser's own antialiasing
// would cost more than the rest of a frame where no GPU renders.
const [FINE, COARSE] = [2, 0.5];
const NO_GPU = /swiftshader|llvmpipe|softpipe|basic render/i;
const SLOW = 1 / 32; // seconds of a frame, above which fewer pixels are drawn

const PI = Math.PI;
// Constants of the nine functions, as in caphuman_jax.head.spherical_harmonics.
const SH = [
  1 / Math.sqrt(4 * PI),
  ...Array(3).fill(((2 * PI) / 3) * Math.sqrt(3 / (4 * PI))),
  ...Array(3).fill((PI / 4) * 3 * Math.sqrt(5 / (12 * PI))),
  (PI / 4) * 1.5 * Math.sqrt(5 / (12 * PI)),
  (PI / 4) * 0.5 * Math.sqrt(5 / (4 * PI)),
];

export function decode(text, Type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new Type(bytes.buffer);
}

// One lamp from a direction and even light: `editing.directional_light`.
export function lampLight([x, y, z], strength) {
  const length = Math.hypot(x, y, z) || 1;
  [x, y, z] = [x / length, y / length, z / length];
  const band = 5 / 32;
  const lamp = [
    1 / 4, x / 2, y / 2, z / 2, 6 * band * x * y, 6 * band * x * z, 6 * band * y * z,
    1.5 * band * (x * x - y * y), 0.5 * band * (3 * z * z - 1),
  ];
  return lamp.map((value, i) => {
    const total = 1.4 * strength * value + (i === 0 ? 1 - strength : 0);
    return Array(3).fill(total / SH[i]);
  });
}

// Rz(-roll) · Ry(yaw) · Rx(-pitch), column by column as WebGL takes it.
export function rotation(yaw, pitch, roll) {
  const [a, b, c] = [yaw, pitch, roll].map((degrees) => (degrees * PI) / 180);
  const [cy, sy, cp, sp, cr, sr] = [
    Math.cos(a), Math.sin(a), Math.cos(b), Math.sin(b), Math.cos(c), Math.sin(c),
  ];
  return new Float32Array([
    cr * cy, -sr * cy, -sy,
    sr * cp - cr * sy * sp, cr * cp + sr * sy * sp, -cy * sp,
    cr * sy * cp + sr * sp, cr * sp - sr * sy * cp, cy * cp,
  ]);
}

// The head model, decoded once.
export class HeadModel {
  constructor(view) {
    this.faceHeight = view.face_height;
    this.names = view.expressions;
    this.presets = view.presets;
    this.lights = view.lights;
    this.limits = view.limits;
    this.count = view.vertices;
    this.triangles = decode(view.triangles, this.count < 65536 ? Uint16Array : Uint32Array);
    this.offsets = new Map(
      view.expressions.map((name, i) => [name, [decode(view.offsets[i], Int16Array), view.steps[i]]]),
    );
  }

  // Points of a shape with expressions at their weights.
  pose(shape, weights, out) {
    out.set(shape);
    for (const [name, weight] of Object.entries(weights)) {
      const known = this.offsets.get(name);
      if (!known || !weight) continue;
      const [offsets, factor] = [known[0], known[1] * weight];
      for (let i = 0; i < out.length; i++) out[i] += offsets[i] * factor;
    }
  }

  // Normals at vertices: the sum of those of the triangles around each, weighted by their areas.
  normals(points, out) {
    out.fill(0);
    const t = this.triangles;
    for (let i = 0; i < t.length; i += 3) {
      const [a, b, c] = [3 * t[i], 3 * t[i + 1], 3 * t[i + 2]];
      const ux = points[b] - points[a], uy = points[b + 1] - points[a + 1], uz = points[b + 2] - points[a + 2];
      const vx = points[c] - points[a], vy = points[c + 1] - points[a + 1], vz = points[c + 2] - points[a + 2];
      const x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
      for (const k of [a, b, c]) {
        out[k] += x;
        out[k + 1] += y;
        out[k + 2] += z;
      }
    }
  }
}

// Draws heads. A head is {mesh, now: {yaw, pitch, roll, x, y, size, weights, light}}.
export class HeadView {
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl", { antialias: false });
    this.model = null;
    this.frames = 0;
    // Parts of the finest detail: now, and while a head moves. Then seconds of a frame.
    Object.assign(this, { detail: 1, coarse: 1, last: -Infinity, mean: 0 });
    if (this.gl) this.start();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.start();
      if (this.model) this.use(this.model);
    });
  }

  start() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    this.at = Object.fromEntries(
      ["point", "normal", "color", "height"].map((name) => [name, gl.getAttribLocation(program, name)]),
    );
    this.uniform = Object.fromEntries(
      ["turn", "place", "depth", "neck", "light", "fade"].map((name) => [name, gl.getUniformLocation(program, name)]),
    );
    gl.enable(gl.DEPTH_TEST);
    gl.enable(gl.CULL_FACE);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.clearColor(0, 0, 0, 0);
    this.buffers = new WeakMap();
    const facts = gl.getExtension("WEBGL_debug_renderer_info");
    if (facts && NO_GPU.test(gl.getParameter(facts.UNMASKED_RENDERER_WEBGL))) this.coarse = COARSE;
  }

  use(model) {
    this.model = model;
    if (!this.gl) return;
    const gl = this.gl;
    if (model.triangles instanceof Uint32Array) gl.getExtension("OES_element_index_uint");
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, model.triangles, gl.STATIC_DRAW);
  }

  // Draw at the next frame; calls before it are one.
  draw(heads, aspect) {
    this.scene = [heads, aspect];
    if (this.waiting || !this.gl || !this.model) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.render(...this.scene);
    });
  }

  // Fewer pixels while frames of a movement come too slowly, all of them once the head is still.
  pace() {
    const now = performance.now();
    const seconds = (now - this.last) / 1000;
    const moving = seconds < 0.25;
    this.last = now;
    // One slow frame may be a slow hand.
    this.mean = moving ? 0.7 * this.mean + 0.3 * Math.min(seconds, 1.6 * SLOW) : SLOW / 2;
    if (this.mean > SLOW && this.coarse > COARSE) {
      this.coarse = Math.max(COARSE, 0.7 * this.coarse);
      this.mean = SLOW / 2;
    }
    this.detail = moving ? this.coarse : 1;
    clearTimeout(this.still);
    if (this.detail === 1) return;
    this.still = setTimeout(() => {
      this.last = -Infinity;
      this.draw(...this.scene);
    }, 300);
  }

  render(heads, aspect) {
    const gl = this.gl;
    this.pace();
    const ratio = Math.min(FINE * (window.devicePixelRatio || 1), 3) * this.detail;
    const width = Math.round(this.canvas.clientWidth * ratio);
    const height = Math.round(width / aspect);
    if (!width) return;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    for (const head of heads) {
      gl.clear(gl.DEPTH_BUFFER_BIT);
      this.renderOne(head, aspect, heads.length > 1 && !head.current ? 0.82 : 1);
    }
    this.frames += 1;
  }

  renderOne(head, aspect, fade) {
    const gl = this.gl;
    const { now, mesh } = head;
    const kept = this.buffersOf(mesh, now.weights);
    for (const [name, size, kind, unit] of [
      ["point", 3, gl.FLOAT, false], ["normal", 3, gl.FLOAT, false], ["color", 3, gl.UNSIGNED_BYTE, true],
      ["height", 1, gl.FLOAT, false],
    ]) {
      gl.bindBuffer(gl.ARRAY_BUFFER, kept[name]);
      gl.enableVertexAttribArray(this.at[name]);
      gl.vertexAttribPointer(this.at[name], size, kind, unit, 0, 0);
    }
    const scale = (2 * now.size) / this.model.faceHeight;
    gl.uniformMatrix3fv(this.uniform.turn, false, rotation(now.yaw, now.pitch, now.roll));
    gl.uniform4f(this.uniform.place, 2 * now.x - 1, 1 - 2 * now.y, scale / aspect, scale);
    gl.uniform1f(this.uniform.depth, 0.25 / this.model.faceHeight);
    gl.uniform2f(this.uniform.neck, kept.lowest + 0.08 * this.model.faceHeight, kept.lowest + 0.36 * this.model.faceHeight);
    gl.uniform1f(this.uniform.fade, fade);
    gl.uniform3fv(
      this.uniform.light,
      new Float32Array(now.light.flatMap((row, i) => row.map((value) => value * SH[i]))),
    );
    gl.drawElements(
      gl.TRIANGLES, this.model.triangles.length,
      this.model.triangles instanceof Uint32Array ? gl.UNSIGNED_INT : gl.UNSIGNED_SHORT, 0,
    );
  }

  // Buffers of a mesh; points and normals are computed again where its expression has changed.
  buffersOf(mesh, weights) {
    const gl = this.gl;
    let kept = this.buffers.get(mesh);
    if (!kept) {
      kept = { points: new Float32Array(mesh.shape.length), normals: new Float32Array(mesh.shape.length) };
      const heights = mesh.shape.filter((_, i) => i % 3 === 1);
      kept.lowest = heights.reduce((low, value) => Math.min(low, value));
      for (const name of ["point", "normal", "color", "height"]) kept[name] = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, kept.height);
      gl.bufferData(gl.ARRAY_BUFFER, heights, gl.STATIC_DRAW);
      gl.bindBuffer(gl.ARRAY_BUFFER, kept.color);
      gl.bufferData(gl.ARRAY_BUFFER, mesh.colors, gl.STATIC_DRAW);
      this.buffers.set(mesh, kept);
    }
    const key = JSON.stringify(weights);
    if (kept.key !== key) {
      kept.key = key;
      this.model.pose(mesh.shape, weights, kept.points);
      this.model.normals(kept.points, kept.normals);
      gl.bindBuffer(gl.ARRAY_BUFFER, kept.point);
      gl.bufferData(gl.ARRAY_BUFFER, kept.points, gl.DYNAMIC_DRAW);
      gl.bindBuffer(gl.ARRAY_BUFFER, kept.normal);
      gl.bufferData(gl.ARRAY_BUFFER, kept.normals, gl.DYNAMIC_DRAW);
    }
    return kept;
  }
}
