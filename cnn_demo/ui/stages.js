// Feature-map sizes, drawn to scale with the maps of a picture, and the same in a table; either opens a stage.
cnnDemo.shapeText = ([channels, height, width]) => `${height}×${width}×${cnnDemo.count(channels)}`;
cnnDemo.shareText = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`;

cnnDemo.showStages = (root, props, server, watch) => {
  const { make } = cnnDemo;
  const isVisible = () => document.visibilityState === "visible" && root.offsetParent !== null;
  const tour = cnnDemo.tour({ server, isVisible, redraw });
  const box = root.querySelector(".stages-view");
  const drawings = make("div", { class: "drawings" });
  const numbers = make("div", { class: "numbers" });
  box.append(tour.aside, drawings, numbers);
  let open = ""; // the name of the stage that is open, in all networks

  function toggle(name) {
    open = open === name ? "" : name;
    redraw();
  }

  function redraw() {
    const focus = document.activeElement?.dataset.stage;
    draw();
    if (focus) box.querySelector(`[data-stage="${focus}"]`)?.focus();
  }

  function draw() {
    const { networks = [], pixels = "", error } = props.value || {};
    tour.show(networks, pixels);
    box.classList.toggle("has-picture", Boolean(pixels));
    // One scale for all networks: 64 px for the height of the input, lengths by the most channels.
    const channels = networks.flatMap((network) => network.stages.map((stage) => stage.output[0]));
    const scale = { input: networks[0]?.input[1] || 32, most: Math.max(...channels) };
    const drawn = networks.map((network) => cnnDemo.stageDrawing(network, scale, open, toggle, tour));
    drawings.replaceChildren(...(error ? [make("p", { class: "wrong", role: "alert" }, error)] : []), ...drawn);
    numbers.replaceChildren(...networks.map((network) => cnnDemo.stageTable(network, open, toggle)));
    tour.update();
  }

  watch("value", draw);
  document.addEventListener("visibilitychange", tour.update);
  new ResizeObserver(tour.update).observe(box); // also when the tab is opened
  draw();
};

// What divides among the stages of a network.
cnnDemo.PARTS = {
  "output values": ({ output }) => output.reduce((product, n) => product * n, 1),
  parameters: (stage) => stage.parameters,
  MACs: (stage) => stage.macs,
};

// A network as rows of slabs, and how its PARTS divide among them.
cnnDemo.stageDrawing = (network, scale, open, toggle, tour) => {
  const { make, count } = cnnDemo;
  const sizes = `${count(network.parameters)} parameters · ${count(network.macs)} MACs (FLOPs = 2 × MACs)`;

  function cells(name, output, description) {
    const height = Math.max(2, (64 * output[1]) / scale.input);
    const length = Math.max(0.6, 100 * Math.sqrt(output[0] / scale.most));
    const slab = make("span", { class: `slab ${name}`, style: `height:${height}px;width:${length}%` });
    return [
      make("strong", {}, cnnDemo.shapeText(output)),
      make("span", { class: "slab-room" }, slab),
      make("span", { class: "what" }, make("b", {}, name), ` ${description}`),
    ];
  }

  function row(stage) {
    const opened = open === stage.name;
    const attributes = {
      type: "button", class: "stage-row", "aria-expanded": String(opened),
      "data-stage": `${network.name} row ${stage.name}`, onclick: () => toggle(stage.name),
    };
    const button = make("button", attributes, ...cells(stage.name, stage.output, stage.description));
    const explanation = opened ? make("p", { class: "explanation", role: "status" }, stage.explanation) : null;
    return make("li", {}, button, explanation, tour.row(network, stage.name, opened));
  }

  const input = make("div", { class: "stage-row" }, ...cells("input", network.input, "red, green, blue"));
  return make("section", { class: "network" },
    make("h2", {}, network.title),
    make("p", { class: "quiet", role: "status" }, tour.note(network)),
    make("p", { class: "quiet" }, network.about),
    make("p", { class: "quiet" }, `${sizes} per image of ${scale.input}×${scale.input}`),
    make("ol", { class: "stage-rows" }, make("li", {}, input), ...network.stages.map(row)),
    make("p", { class: "quiet" }, "Height: pixels, to scale. Length: √channels."),
    ...Object.entries(cnnDemo.PARTS).map(([title, part]) => cnnDemo.shareBar(title, network.stages, part)));
};

// A bar of all stages, each as long as its part of the whole.
cnnDemo.shareBar = (title, stages, part) => {
  const { make, count, sum } = cnnDemo;
  const whole = sum(stages.map(part));
  const texts = stages.map((stage) => `${stage.name} ${cnnDemo.shareText(part(stage), whole)}`);
  const pieces = stages.map((stage) => {
    const percent = (100 * part(stage)) / whole;
    const hint = `${stage.name}: ${count(part(stage))} (${cnnDemo.shareText(part(stage), whole)})`;
    const text = percent >= 6 ? `${Math.round(percent)} %` : "";
    return make("span", { class: stage.name, style: `width:${percent}%`, title: hint }, text);
  });
  const label = `${title}: ${texts.join(", ")}`;
  const bar = make("div", { class: "share-bar", role: "img", "aria-label": label }, ...pieces);
  return make("div", { class: "share" }, make("span", {}, title), bar);
};

cnnDemo.stageTable = (network, open, toggle) => {
  const { make, row, table, count, sum } = cnnDemo;
  const { stages, parameters, macs } = network;
  const values = cnnDemo.PARTS["output values"];
  const columns = {
    layers: (stage) => stage.layers,
    "output H×W×C": (stage) => cnnDemo.shapeText(stage.output),
    values: (stage) => count(values(stage)),
    parameters: (stage) => count(stage.parameters),
    "% of parameters": (stage) => cnnDemo.shareText(stage.parameters, parameters),
    MACs: (stage) => count(stage.macs),
    "% of MACs": (stage) => cnnDemo.shareText(stage.macs, macs),
    "receptive field, px": (stage) => count(stage.receptive_field),
    stride: (stage) => stage.stride,
    "output, KiB": (stage) => count(Number((stage.activation_bytes / 1024).toPrecision(3))),
  };
  const sums = {
    layers: sum(stages.map((stage) => stage.layers)),
    values: count(sum(stages.map(values))),
    parameters: count(parameters),
    MACs: count(macs),
  };

  function stageRow(stage) {
    const opened = open === stage.name;
    const attributes = {
      type: "button", "aria-expanded": String(opened), "data-stage": `${network.name} cell ${stage.name}`,
    };
    const button = make("button", attributes, make("span", { class: `dot ${stage.name}` }), stage.name);
    const cells = Object.values(columns).map((text) => text(stage));
    return row({ class: opened ? "open" : "", onclick: () => toggle(stage.name) }, button, cells);
  }

  const total = row({ class: "total" }, "total", Object.keys(columns).map((column) => sums[column] ?? ""));
  const label = `table of the stages of ${network.title}`;
  return make("section", { class: "network" },
    make("h2", {}, `${network.title} in numbers`),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      table({}, ["stage", ...Object.keys(columns)], [...stages.map(stageRow), total])));
};
