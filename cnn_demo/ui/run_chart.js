// The charts of one to four runs: loss, accuracy and learning rate by step, updated in place by Plotly.

// An exponential moving average that does not start at zero.
cnnDemo.smooth = (values, factor) => {
  let [sum, weight] = [0, 0];
  return values.map((value) => {
    sum = factor * sum + (1 - factor) * value;
    weight = factor * weight + 1 - factor;
    return sum / weight;
  });
};

// The last step of a run that is drawn. replayed: how much of its curve, 0 to 1; null: all of it.
cnnDemo.lastStep = (record, replayed) =>
  replayed === null ? Infinity : replayed * (record.points.at(-1)?.step || 0);

// Returns the nine curves of a run. upTo: the last step that is drawn; label: "2: " where several runs are drawn.
cnnDemo.curves = (record, { upTo, label, colour, edge, smoothing }) => {
  const { count, smooth } = cnnDemo;
  const until = (rows) => rows.filter(({ step }) => step <= upTo);
  const points = until(record.points);
  const extremes = (point) => [point.loss_high, point.loss_low].map((loss) => ({ step: point.step, loss }));
  const answered = points.filter(({ accuracy }) => accuracy != null); // older runs did not measure it
  const part = Math.min(...record.validations.map(({ pictures }) => pictures)); // on how many images during an epoch
  const checks = until(record.validations).filter(({ pictures }) => pictures === part);
  const all = record.started?.validation_pictures || 0;
  const epochs = until(record.epochs).filter((epoch) => epoch.validation_loss != null);
  const best = epochs.filter((epoch) => epoch.best).slice(-1);
  const valuesOf = (rows, field) => rows.map((row) => row[field]);
  const curve = (name, rows, field, line, more) => ({
    type: "scatter", mode: "lines", name: label + name, legendgroup: label || undefined,
    x: valuesOf(rows, "step"), y: valuesOf(rows, field), line: { color: colour, ...line }, ...more,
  });
  const smoothed = (rows, field) => ({ y: smooth(valuesOf(rows, field), smoothing) });
  const faint = { opacity: 0.35, hoverinfo: "skip" };
  const nats = { hovertemplate: "%{y:.3f}" };
  const share = { hovertemplate: "%{y:.1%}", yaxis: "y2" };
  const dotted = { width: 1.5, dash: "dot" };
  const marked = { mode: "lines+markers", marker: { size: 6, symbol: "diamond" } };
  const star = { color: colour, size: 15, symbol: "star", line: { width: 1, color: edge } };
  return [
    curve("loss, raw", points.flatMap(extremes), "loss", { width: 1 }, faint),
    curve("loss, smoothed", points, "loss", { width: 2 }, { ...nats, ...smoothed(points, "loss") }),
    curve("validation loss", epochs, "validation_loss", dotted, { ...nats, ...marked }),
    curve("accuracy, raw", answered, "accuracy", { width: 1 }, { ...share, ...faint }),
    curve("accuracy, smoothed", answered, "accuracy", { width: 2 }, { ...share, ...smoothed(answered, "accuracy") }),
    curve(`validation accuracy,<br>${part < all ? `${count(part)} of ` : ""}${count(all)} images`, checks, "accuracy",
      dotted, share),
    curve("validation accuracy", epochs, "validation_accuracy", dotted, { ...share, ...marked }),
    curve("best checkpoint", best, "validation_accuracy", {}, {
      ...share, mode: "markers", marker: star, hovertemplate: "best: %{y:.1%}",
    }),
    curve("learning rate", points, "learning_rate", { width: 1.5 }, { yaxis: "y3", hovertemplate: "%{y:.3g}" }),
  ];
};

// view: what keeps its zoom (the run's id). Three charts share the axis of steps.
cnnDemo.chartLayout = ({ width, narrow, logarithmic, view, style }) => {
  const axis = { gridcolor: style("--grid"), zeroline: false, automargin: false, fixedrange: narrow };
  const half = { entrywidth: 0.48, entrywidthmode: "fraction" };
  return {
    width,
    height: narrow ? 560 : 600,
    margin: narrow ? { l: 48, r: 4, t: 4, b: 40 } : { l: 56, r: 12, t: 4, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style("--ink"), family: "system-ui, sans-serif", size: 12 },
    hovermode: "x unified",
    hoversubplots: "axis",
    hoverlabel: { bgcolor: style("--background"), font: { color: style("--ink") } },
    legend: {
      orientation: "h", y: 1.01, yanchor: "bottom", x: 0, font: { size: narrow ? 10 : 11 }, ...(narrow ? half : {}),
    },
    dragmode: narrow ? false : "zoom",
    uirevision: view,
    xaxis: { ...axis, title: { text: "step" }, anchor: "y3", rangemode: "tozero" },
    yaxis: {
      ...axis, title: { text: "loss (nats)" }, domain: [0.54, 1], type: logarithmic ? "log" : "linear",
      uirevision: view + logarithmic,
    },
    yaxis2: { ...axis, title: { text: "accuracy" }, domain: [0.19, 0.49], tickformat: ".0%", range: [0, 1] },
    yaxis3: { ...axis, title: { text: "rate" }, domain: [0, 0.13], rangemode: "tozero", nticks: 3 },
  };
};

// box: the node whose width and colours count; plotly: the address of the library; onError(sentence).
cnnDemo.runChart = ({ box, tools, chart, plotly, isVisible, onError }) => {
  const { make } = cnnDemo;
  const choices = { logarithmic: false, smoothing: 0.8 };
  const style = (name) => getComputedStyle(box).getPropertyValue(name).trim();
  let last = null; // what was asked to be drawn
  let cost = 0; // milliseconds of the last drawing
  let dragging = false; // a drawing would end the drag
  let loading = null;

  function loadPlotly() {
    loading ||= new Promise((resolve, reject) => {
      document.head.append(make("script", { src: plotly, onload: resolve, onerror: reject }));
    });
    return loading;
  }

  // runs: [[id, record]], the first one in view; replayed: how much of it is drawn, 0 to 1; summary: its text.
  async function draw(runs, replayed, summary) {
    last = [runs, replayed, summary];
    chart.hidden = tools.hidden = !runs.some(([, record]) => record.points.length);
    if (chart.hidden) return;
    try {
      await loadPlotly();
    } catch {
      loading = null;
      return onError("The charts could not be loaded; reload the page.");
    }
    if (!isVisible() || dragging || last[0] !== runs) return;
    const seen = runs.map(([id, record]) => [id, record.seq]);
    const key = [...seen, ...Object.values(choices), replayed, chart.clientWidth, style("--ink")].join();
    if (chart.dataset.key === key) return;
    chart.dataset.key = key;
    const begun = performance.now();
    const narrow = chart.clientWidth < 520;
    const data = runs.flatMap(([, record], index) => {
      return cnnDemo.curves(record, {
        upTo: index ? Infinity : cnnDemo.lastStep(record, replayed),
        label: runs.length > 1 ? `${index + 1}: ` : "",
        colour: style(`--run-${index + 1}`),
        edge: style("--background"),
        smoothing: choices.smoothing,
      });
    });
    const layout = cnnDemo.chartLayout({ width: chart.clientWidth, narrow, view: runs[0][0], style, ...choices });
    const buttons = { displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    await Plotly.react(chart, data, layout, { displayModeBar: narrow ? false : "hover", ...buttons });
    chart.setAttribute("role", "figure");
    chart.setAttribute("aria-label", `Loss, accuracy and learning rate by step. ${summary}`);
    requestAnimationFrame(() => setTimeout(() => (cost = performance.now() - begun))); // painting included
  }

  const redraw = () => last && draw(...last);

  function choose(name, value) {
    choices[name] = value;
    redraw();
  }

  const slider = make("input", {
    type: "range", min: 0, max: 0.98, step: 0.02, value: choices.smoothing,
    "aria-label": "smoothing of the training loss",
    oninput: (event) => choose("smoothing", Number(event.target.value)),
  });
  const check = make("input", { type: "checkbox", onchange: (event) => choose("logarithmic", event.target.checked) });
  tools.append(make("label", {}, "smoothing ", slider), make("label", {}, check, " logarithmic loss"));

  chart.addEventListener("pointerdown", () => (dragging = true), true);
  for (const end of ["pointerup", "pointercancel", "blur"]) {
    addEventListener(end, () => {
      if (!dragging) return;
      dragging = false;
      setTimeout(redraw);
    });
  }
  new MutationObserver(redraw).observe(document.body, { attributes: true, attributeFilter: ["class"] }); // dark, light
  return { draw, redraw, cost: () => cost };
};
