// What a network makes of a picture: the maps of its stages as tiles, and a lens on the picture that follows them.
(() => {
  const { make, radios, setText, percent, count } = cnnDemo;
  const INPUT = 32; // px, of the picture as the network sees it
  const [TILE, PITCH, LENS] = [32, 34, 192]; // px: a map, with the gap to the next; the lens
  const RENEWAL = 3000; // ms between two questions whether a run has saved newer weights
  const HINT = "Point at a map, or go to one with Tab and the arrow keys: this shows what a place in it can see.";
  const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // evenly lighter

  // Returns [red, green, blue] of a share, 0 to 1.
  function colour(share) {
    const low = Math.min(Math.floor(share * 4), 3);
    return VIRIDIS[low].map((value, i) => value + (VIRIDIS[low + 1][i] - value) * (share * 4 - low));
  }

  // Returns a canvas; paint(i) gives [red, green, blue] of its pixel i.
  function raster(width, height, paint) {
    const canvas = make("canvas", { width, height });
    const image = new ImageData(width, height);
    for (let i = 0; i < width * height; i += 1) image.data.set([...paint(i), 255], 4 * i);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  // Returns the picture as the network sees it, from the bytes `3,32,32` in base64.
  function pictureOf(pixels) {
    const bytes = Uint8Array.from(atob(pixels), (character) => character.charCodeAt(0));
    return raster(INPUT, INPUT, (i) => [0, 1, 2].map((channel) => bytes[channel * INPUT * INPUT + i]));
  }

  // Adds to a layer's maps the values and the canvas of each, from the server's sprite, which has eight in a row.
  async function readSprite(map) {
    const image = new Image();
    image.src = `data:image/png;base64,${map.png}`;
    await image.decode();
    const { width, height } = image;
    const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const side = (map.side = map.size[1]);
    map.grey = map.channels.map((_, i) =>
      context.getImageData((i % 8) * side, Math.floor(i / 8) * side, side, side).data);
    map.tiles = map.grey.map((data) => raster(side, side, (i) => colour(data[4 * i] / 255)));
  }

  // Dark and light: it is seen on every colour.
  function outline(context, x, y, width, height) {
    for (const [style, line] of [["#000", 3], ["#fff", 1.5]]) {
      Object.assign(context, { strokeStyle: style, lineWidth: line });
      context.strokeRect(x + 0.75, y + 0.75, width - 1.5, height - 1.5);
    }
  }

  // Returns the first row of the picture that row i of a map can see, and the one behind the last; columns are alike.
  const seenBy = ({ field: [first, stride, size] }, i) =>
    [Math.max(0, first + i * stride), Math.min(INPUT, first + i * stride + size)];

  const number = (value) => String(Number(value.toPrecision(2)));

  function describe(map) {
    const dead = `${count(map.dead)} ${map.dead === 1 ? "is" : "are"} zero for this picture`;
    const [channels, height, width] = map.size;
    const shown = `${map.tiles.length} of ${count(channels)} shown, strongest first`;
    return `${map.name}, ${height}×${width}: ${shown}; ${dead}. ` +
      `Mean ${number(map.mean)}, largest ${number(map.largest)}; ${percent(map.zeros)} of the values are zero.`;
  }

  function describePlace(map, { tile, row, column }) {
    const value = number((map.largest * map.grey[tile][4 * (row * map.side + column)]) / 255);
    const [down, across] = [row, column].map((place) => seenBy(map, place));
    const range = ([first, end]) => `${first + 1} to ${end}`;
    const isWhole = [...down, ...across].join() === [0, INPUT, 0, INPUT].join();
    const sees = isWhole ? "the whole picture" : `rows ${range(down)}, columns ${range(across)} of the picture`;
    const place = `row ${row + 1}, column ${column + 1} of ${map.side}×${map.side}`;
    return `${map.name}, channel ${map.channels[tile]}, ${place}: ${value}. It sees ${sees}.`;
  }

  // server.maps is stages.py's. isVisible() tells whether anybody looks; redraw() draws the networks and their maps.
  cnnDemo.tour = ({ server, isVisible, redraw }) => {
    const answers = new Map(); // name of a checkpoint -> what the server says of it
    const layers = new Map(); // "checkpoint stage" -> the layer that is shown there
    let networks = [];
    let views = []; // the canvases in the drawing: {canvas, map, columns}
    let [pixels, picture] = ["", null];
    let weights = "after"; // or "before" training
    let mark = {}; // what is pointed at: the stage of the canvas, and x and y in places of the whole canvas
    let isOver = false; // its map lies over the picture
    let [timer, asking, again] = [0, false, false];

    const lens = make("canvas", {
      width: LENS, height: LENS, role: "img", "aria-label": "what the network sees", onclick: () => lay(false),
    });
    const status = make("p", { role: "status" });
    const moments = { before: "before training", after: "after training, or now" };
    const choice = radios("Weights", "weights", moments, weights, (moment) => ((weights = moment), ask()));
    const aside = make("aside", { class: "lens", "aria-label": "what a place in a map sees" }, lens,
      make("div", {}, status, make("p", { class: "map-scale" }, "0", make("span"), "largest of the stage"), choice));

    // Asks for what is shown and not known, one network after the other; again while a run may save newer weights.
    async function ask() {
      clearTimeout(timer);
      again = asking;
      if (asking || !pixels || !isVisible()) return;
      asking = true;
      for (const { name, checkpoint } of networks) if (checkpoint) await renew(name);
      asking = false;
      if (again) ask();
      else if (networks.some(({ name }) => answers.get(name)?.training)) timer = setTimeout(ask, RENEWAL);
    }

    async function renew(name) {
      const chosen = [...layers].filter(([place]) => place.startsWith(`${name} `)).map(([, layer]) => layer);
      const asked = { name, picture: pixels, weights, layers: chosen, owner: cnnDemo.owner() };
      const key = JSON.stringify(asked);
      const known = answers.get(name)?.key === key ? answers.get(name) : {};
      if (known.maps && !known.training) return;
      const lost = { error: "The server did not answer; choose the picture again." };
      const answer = (await server.maps({ ...asked, step: known.step ?? -1 }).catch(() => null)) || lost;
      await Promise.all((answer.maps || []).map(readSprite));
      if (asked.picture !== pixels) return;
      answers.set(name, answer.same ? { ...known, training: answer.training } : { ...answer, key });
      if (!answer.same) redraw();
    }

    // Takes what is to be drawn.
    function show(drawn, seen) {
      [networks, views] = [drawn, []];
      if (seen === pixels) return;
      answers.clear();
      [pixels, picture, isOver] = [seen, seen && pictureOf(seen), false];
    }

    // Returns what is known of a network's weights, or what is wrong.
    function note({ name, checkpoint }) {
      const { about, error } = answers.get(name) || {};
      return [checkpoint || "Sizes only: train one to see its maps.", about || error].filter(Boolean).join(" · ");
    }

    // Returns the maps of a stage, and where it is open a choice of the layers in it; nothing before they are known.
    function row({ name, fields }, stage, isOpen) {
      const answer = answers.get(name);
      const isHere = (layer) => layer.split(".")[0] === stage;
      const map = answer?.maps?.find((one) => isHere(one.name));
      if (!map) return null;
      map.field = fields[map.name];
      const text = describe(map);
      const view = { map, columns: 1 };
      view.canvas = make("canvas", {
        tabindex: "0", role: "application", "data-stage": `${name} maps ${stage}`,
        "aria-label": `${text} Arrow keys move, Enter lays a map over the picture, Escape removes it.`,
        onpointermove: (event) => point(view, placeOf(view, event)),
        onclick: (event) => (point(view, placeOf(view, event)), lay(true)),
        onfocus: () => markIn(view) || point(view, { x: 0, y: 0 }),
        onkeydown: (event) => press(view, event),
      });
      views.push(view);
      const choices = answer.layers.filter(isHere).map((layer) => make("button", {
        type: "button", class: "button small", "data-stage": `${name} layer ${layer}`,
        "aria-pressed": String(layer === map.name), onclick: () => (layers.set(`${name} ${stage}`, layer), ask()),
      }, layer === stage ? "output" : layer.slice(stage.length + 1)));
      const group = { class: "layer-choice", role: "group", "aria-label": `layers of ${stage}` };
      return make("div", { class: "maps" }, isOpen ? make("div", group, ...choices) : null, view.canvas,
        make("p", { class: "quiet" }, text));
    }

    function paint(view) {
      const { canvas, map } = view;
      view.columns = Math.max(1, Math.min(16, Math.floor((canvas.parentNode.clientWidth - 10) / PITCH)));
      canvas.width = PITCH * Math.min(view.columns, map.tiles.length);
      canvas.height = PITCH * Math.ceil(map.tiles.length / view.columns);
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      map.tiles.forEach((tile, i) =>
        context.drawImage(tile, PITCH * (i % view.columns), PITCH * Math.floor(i / view.columns), TILE, TILE));
      const px = TILE / map.side; // of a place in a map
      const start = (place) => PITCH * Math.floor(place / map.side) + px * (place % map.side);
      if (markIn(view)) outline(context, start(mark.x), start(mark.y), px, px);
    }

    function paintLens() {
      const view = views.find(markIn);
      const place = view && markIn(view);
      aside.hidden = !pixels;
      setText(status, view ? describePlace(view.map, place) : HINT);
      const context = lens.getContext("2d");
      context.imageSmoothingEnabled = false;
      if (picture) context.drawImage(picture, 0, 0, LENS, LENS);
      if (!view) return;
      context.globalAlpha = 0.8;
      if (isOver) context.drawImage(view.map.tiles[place.tile], 0, 0, LENS, LENS);
      context.globalAlpha = 1;
      const [[top, bottom], [left, right]] = [place.row, place.column].map((i) => seenBy(view.map, i));
      const unit = LENS / INPUT;
      outline(context, left * unit, top * unit, (right - left) * unit, (bottom - top) * unit);
    }

    // Paints what has been drawn, or has changed in size, and asks for what it lacks.
    function update() {
      views.forEach(paint);
      paintLens();
      ask();
    }

    function lay(over) {
      isOver = over;
      paintLens();
    }

    // Returns tile, row and column of what is pointed at, where it is in a view.
    function markIn({ canvas, map: { side, tiles }, columns }) {
      const { stage, x, y } = mark;
      const tile = Math.floor(y / side) * columns + Math.floor(x / side);
      const isIn = stage === canvas.dataset.stage && x >= 0 && x < columns * side && tiles[tile];
      return isIn ? { tile, row: y % side, column: x % side } : null;
    }

    function placeOf({ map: { side } }, { offsetX, offsetY }) {
      const within = (px) => Math.min(side - 1, Math.floor(((px % PITCH) * side) / TILE));
      const place = (px) => Math.floor(px / PITCH) * side + within(px);
      return { x: place(offsetX), y: place(offsetY) };
    }

    function point(view, place) {
      const [before, changed] = [mark, views.filter((one) => one === view || markIn(one))];
      mark = { stage: view.canvas.dataset.stage, ...place };
      if (!markIn(view)) mark = before;
      changed.forEach(paint);
      paintLens();
    }

    function press(view, event) {
      const { key } = event;
      const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] || [];
      if (key === "Enter" || key === "Escape") lay(key === "Enter");
      else if (right !== undefined) point(view, { x: mark.x + right, y: mark.y + down });
      else return;
      event.preventDefault();
    }

    return { aside, show, note, row, update };
  };
})();
