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
    tour.paintAll();
    tour.ask();
  }

  watch("value", draw);
  document.addEventListener("visibilitychange", tour.ask);
  new ResizeObserver(() => {
    tour.paintAll();
    tour.ask(); // the tab may have been opened
  }).observe(box);
  draw();
};

// Adds up the stages: each one's values, and the totals of the network.
cnnDemo.stageTotals = ({ stages, parameters, macs }) => {
  const values = stages.map((stage) => stage.output.reduce((product, n) => product * n, 1));
  return { values, all: values.reduce((sum, n) => sum + n, 0), parameters, macs };
};

// A network as rows of slabs, and how values, parameters and MACs divide among its stages.
cnnDemo.stageDrawing = (network, scale, open, toggle, tour) => {
  const { make, count } = cnnDemo;
  const { stages } = network;
  const totals = cnnDemo.stageTotals(network);
  const sizes = `${count(totals.parameters)} parameters · ${count(totals.macs)} MACs (FLOPs = 2 × MACs)`;

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
    make("ol", { class: "stage-rows" }, make("li", {}, input), ...stages.map(row)),
    make("p", { class: "quiet" }, "Height: pixels, to scale. Length: √channels."),
    cnnDemo.shareBar("output values", stages, totals.values, totals.all),
    cnnDemo.shareBar("parameters", stages, stages.map((stage) => stage.parameters), totals.parameters),
    cnnDemo.shareBar("MACs", stages, stages.map((stage) => stage.macs), totals.macs));
};

// A bar of all stages, each as long as its part of the whole.
cnnDemo.shareBar = (title, stages, parts, whole) => {
  const { make, count } = cnnDemo;
  const texts = stages.map((stage, i) => `${stage.name} ${cnnDemo.shareText(parts[i], whole)}`);
  const pieces = stages.map((stage, i) => {
    const percent = (100 * parts[i]) / whole;
    const hint = `${stage.name}: ${count(parts[i])} (${cnnDemo.shareText(parts[i], whole)})`;
    const text = percent >= 6 ? `${Math.round(percent)} %` : "";
    return make("span", { class: stage.name, style: `width:${percent}%`, title: hint }, text);
  });
  const label = `${title}: ${texts.join(", ")}`;
  const bar = make("div", { class: "share-bar", role: "img", "aria-label": label }, ...pieces);
  return make("div", { class: "share" }, make("span", {}, title), bar);
};

cnnDemo.stageTable = (network, open, toggle) => {
  const { make, count } = cnnDemo;
  const { stages } = network;
  const totals = cnnDemo.stageTotals(network);
  const columns = {
    layers: (stage) => stage.layers,
    "output H×W×C": (stage) => cnnDemo.shapeText(stage.output),
    values: (stage) => count(stage.output.reduce((product, n) => product * n, 1)),
    parameters: (stage) => count(stage.parameters),
    "% of parameters": (stage) => cnnDemo.shareText(stage.parameters, totals.parameters),
    MACs: (stage) => count(stage.macs),
    "% of MACs": (stage) => cnnDemo.shareText(stage.macs, totals.macs),
    "receptive field, px": (stage) => count(stage.receptive_field),
    stride: (stage) => stage.stride,
    "output, KiB": (stage) => count(Number((stage.activation_bytes / 1024).toPrecision(3))),
  };
  const sums = {
    layers: stages.reduce((sum, stage) => sum + stage.layers, 0),
    values: count(totals.all),
    parameters: count(totals.parameters),
    MACs: count(totals.macs),
  };

  function row(stage) {
    const opened = open === stage.name;
    const attributes = {
      type: "button", "aria-expanded": String(opened), "data-stage": `${network.name} cell ${stage.name}`,
    };
    const button = make("button", attributes, make("span", { class: `dot ${stage.name}` }), stage.name);
    const cells = Object.values(columns).map((text) => make("td", {}, String(text(stage))));
    return make("tr", { class: opened ? "open" : "", onclick: () => toggle(stage.name) },
      make("th", { scope: "row" }, button), ...cells);
  }

  const heads = ["stage", ...Object.keys(columns)].map((head) => make("th", { scope: "col" }, head));
  const total = Object.keys(columns).map((column) => make("td", {}, String(sums[column] ?? "")));
  const label = `table of the stages of ${network.title}`;
  return make("section", { class: "network" },
    make("h2", {}, `${network.title} in numbers`),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      make("table", {},
        make("thead", {}, make("tr", {}, ...heads)),
        make("tbody", {}, ...stages.map(row),
          make("tr", { class: "total" }, make("th", { scope: "row" }, "total"), ...total)))));
};
