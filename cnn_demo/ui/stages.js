// Feature-map sizes, drawn to scale, and the table beside them; either opens a stage's explanation.
cnnDemo.showStages = (root, props, watch) => {
  const { make } = cnnDemo;
  const box = root.querySelector(".stages-view");
  const KEYS = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5", "classifier"];
  const count = (number) => number.toLocaleString("en");
  const share = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`;
  let open = ""; // the name of the stage that is open, in all networks

  function draw() {
    const { networks = [] } = props.value || {};
    // One scale for all that is side by side: 64 px for the picture's height, lengths by the most channels.
    const most = Math.max(...networks.flatMap((network) => network.stages.map((stage) => stage.output[0])));
    const input = networks[0]?.input[1] || 32;
    const parts = networks.map((network) => show(network, input, most));
    box.replaceChildren(make("div", { class: "drawings" }, ...parts.map(([drawing]) => drawing)), ...parts.map(([, table]) => table));
  }

  function show(network, input, most) {
    const { stages, parameters, macs } = network;
    const values = stages.map((stage) => stage.output.reduce((product, n) => product * n, 1));
    const allValues = values.reduce((sum, n) => sum + n, 0);
    const shape = ([channels, height, width]) => `${height}×${width}×${count(channels)}`;

    const slab = (name, output) => {
      const height = Math.max(2, (64 * output[1]) / input);
      const length = Math.max(0.6, (100 * Math.sqrt(output[0])) / Math.sqrt(most));
      return make("span", { class: "slab-room" }, make("span", { class: `slab ${name}`, style: `height:${height}px;width:${length}%` }));
    };
    const toggle = (name) => () => {
      open = open === name ? "" : name;
      const focus = document.activeElement?.dataset.stage;
      draw();
      if (focus) box.querySelector(`[data-stage="${focus}"]`)?.focus();
    };
    const rows = stages.map((stage, i) => {
      const opened = open === stage.name;
      const row = make("button", { type: "button", class: "stage-row", "aria-expanded": String(opened), "data-stage": `${network.model} row ${stage.name}`, onclick: toggle(stage.name) },
        make("strong", {}, shape(stage.output)), slab(stage.name, stage.output), make("span", { class: "what" }, make("b", {}, stage.name), ` ${stage.description}`));
      return make("li", {}, row, opened ? make("p", { class: "explanation", role: "status" }, stage.explanation) : null);
    });
    const first = make("li", {}, make("div", { class: "stage-row" }, make("strong", {}, shape(network.input)), slab("input", network.input), make("span", { class: "what" }, make("b", {}, "input"), " red, green, blue")));

    const bar = (title, parts, whole) =>
      make("div", { class: "share" }, make("span", {}, title),
        make("div", { class: "share-bar", role: "img", "aria-label": `${title}: ${stages.map((stage, i) => `${stage.name} ${share(parts[i], whole)}`).join(", ")}` },
          ...stages.map((stage, i) => make("span", { class: stage.name, style: `width:${(100 * parts[i]) / whole}%`, title: `${stage.name}: ${count(parts[i])} (${share(parts[i], whole)})` }, parts[i] / whole >= 0.06 ? `${Math.round((100 * parts[i]) / whole)} %` : ""))));

    const heads = ["stage", "layers", "output H×W×C", "values", "parameters", "share", "MACs", "share", "field, px", "stride", "KiB"];
    const body = stages.map((stage, i) =>
      make("tr", { class: open === stage.name ? "open" : "", onclick: toggle(stage.name) },
        make("th", { scope: "row" }, make("button", { type: "button", "aria-expanded": String(open === stage.name), "data-stage": `${network.model} cell ${stage.name}` }, make("span", { class: `dot ${stage.name}` }), stage.name)),
        ...[stage.layers, shape(stage.output), count(values[i]), count(stage.parameters), share(stage.parameters, parameters), count(stage.macs), share(stage.macs, macs), count(stage.receptive_field), stage.stride, count(Number((stage.activation_bytes / 1024).toPrecision(3)))].map((cell) => make("td", {}, String(cell)))));
    const total = make("tr", { class: "total" }, make("th", { scope: "row" }, "total"), ...[stages.reduce((sum, stage) => sum + stage.layers, 0), "", count(allValues), count(parameters), "", count(macs), "", "", "", ""].map((cell) => make("td", {}, String(cell))));

    const drawing = make("section", { class: "network" },
      make("h2", {}, network.title),
      make("p", { class: "quiet" }, `${count(parameters)} parameters · ${count(macs)} MACs (FLOPs = 2 × MACs), for one picture of ${input}×${input}`),
      make("ol", { class: "stage-rows" }, first, ...rows),
      make("p", { class: "quiet" }, "Height: pixels, to scale. Length: √channels."),
      bar("values out", values, allValues), bar("parameters", stages.map((stage) => stage.parameters), parameters), bar("MACs", stages.map((stage) => stage.macs), macs));
    const table = make("section", { class: "network" },
      make("h2", {}, `${network.title} in numbers`),
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `table of the stages of ${network.title}` },
        make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...body, total))));
    return [drawing, table];
  }

  watch("value", draw);
  draw();
};
