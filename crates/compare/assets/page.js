// Draws the charts of the page from the report that is part of it.
(() => {
  "use strict";
  const report = JSON.parse(document.getElementById("report").textContent);
  // Okabe and Ito's colours, which the colour-blind can tell apart; a dash and a point shape each,
  // for those who see none.
  const styles = {
    spinnaker: { color: "#0072B2", dash: [], point: "circle" },
    raft: { color: "#D55E00", dash: [8, 3], point: "triangle" },
    pacifica: { color: "#009E73", dash: [2, 3], point: "rect" },
    none: { color: "#999999", dash: [12, 3, 2, 3], point: "cross" },
    etcd: { color: "#E69F00", dash: [4, 2], point: "rectRot" },
  };
  const styleOf = (name) => styles[name] || { color: "#CC79A7", dash: [4, 4], point: "star" };
  document.querySelectorAll(".swatch").forEach((it) => {
    it.style.background = styleOf(it.dataset.system).color;
  });

  const charts = [];
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dress = () => {
    Chart.defaults.color = css("--text");
    Chart.defaults.borderColor = css("--line");
  };
  dress();
  Chart.defaults.animation = false;
  Chart.defaults.maintainAspectRatio = false;
  Chart.defaults.plugins.legend.labels.usePointStyle = true;
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;

  // Of a logarithmic axis, 1, 2 and 5 of each power of ten have room.
  const few = (value) => {
    const first = Number(value.toExponential()[0]);
    return [1, 2, 5].includes(first) ? value.toLocaleString("en") : "";
  };
  const axis = (title, more) => ({
    title: { display: true, text: title },
    ...(more?.type === "logarithmic" ? { ticks: { callback: few, maxRotation: 0 } } : {}),
    ...more,
  });
  const draw = (id, config) => {
    const canvas = document.getElementById(id);
    if (canvas) charts.push(new Chart(canvas, config));
  };

  // Confidence intervals as lines on bars.
  const intervals = {
    id: "intervals",
    afterDatasetsDraw(chart) {
      const context = chart.ctx;
      const scale = chart.scales.y;
      context.save();
      context.strokeStyle = css("--text");
      context.lineWidth = 1.5;
      chart.data.datasets.forEach((set, at) => {
        const meta = chart.getDatasetMeta(at);
        if (meta.hidden) return;
        meta.data.forEach((bar, index) => {
          const interval = (set.intervals || [])[index];
          if (!interval || interval.low === null || interval.high === null) return;
          const low = scale.getPixelForValue(interval.low);
          const high = scale.getPixelForValue(interval.high);
          context.beginPath();
          context.moveTo(bar.x, low);
          context.lineTo(bar.x, high);
          context.moveTo(bar.x - 4, low);
          context.lineTo(bar.x + 4, low);
          context.moveTo(bar.x - 4, high);
          context.lineTo(bar.x + 4, high);
          context.stroke();
        });
      });
      context.restore();
    },
  };

  // The time of a fault, shaded.
  const shade = {
    id: "shade",
    beforeDatasetsDraw(chart, _args, options) {
      if (options.from === undefined) return;
      const { left, right, top, bottom } = chart.chartArea;
      const within = (x) => Math.min(right, Math.max(left, x));
      const from = within(chart.scales.x.getPixelForValue(options.from));
      const to = within(chart.scales.x.getPixelForValue(options.to));
      chart.ctx.save();
      chart.ctx.fillStyle = css("--shade");
      chart.ctx.fillRect(from, top, to - from, bottom - top);
      chart.ctx.restore();
    },
  };

  const bars = (id, unit, valueOf) => {
    const tops = report.workloads.flatMap((workload) => workload.systems)
      .map((it) => valueOf(it)).map((it) => it.high ?? it.mean);
    const names = report.systems.map((it) => it.name).filter((name) =>
      report.workloads.some((workload) => workload.systems.some((it) => it.system === name)));
    draw(id, {
      type: "bar",
      data: {
        labels: report.workloads.map((it) => it.name),
        datasets: names.map((name) => {
          const found = report.workloads.map((workload) =>
            workload.systems.find((it) => it.system === name));
          const values = found.map((it) => (it ? valueOf(it) : null));
          return {
            label: name,
            backgroundColor: styleOf(name).color,
            data: values.map((it) => (it ? it.mean : null)),
            intervals: values,
          };
        }),
      },
      options: {
        scales: { y: axis(unit, { beginAtZero: true, suggestedMax: Math.max(0, ...tops) }) },
      },
      plugins: [intervals],
    });
  };
  bars("throughput", "operations per second", (it) => it.throughput);
  bars("cost", "processor microseconds per operation",
    (it) => ({ mean: it.cost.processor_us, low: null, high: null }));

  const line = (name, points) => ({
    label: name,
    data: points,
    borderColor: styleOf(name).color,
    backgroundColor: styleOf(name).color,
    borderDash: styleOf(name).dash,
    pointStyle: styleOf(name).point,
    borderWidth: 2,
  });

  // Throughput against latency: the same writes by more and more callers.
  const writes = report.workloads.filter((it) => /^write(-\d+)?$/.test(it.name))
    .sort((a, b) => a.callers - b.callers);
  draw("load", {
    type: "line",
    data: {
      datasets: report.systems.filter((it) => it.role !== "control").map(({ name }) => line(name,
        writes.flatMap((workload) => workload.systems.filter((it) => it.system === name)
          .map((it) => ({ x: it.throughput.mean, y: it.p50_us.mean / 1000, callers: workload.callers }))))),
    },
    options: {
      scales: {
        x: axis("writes per second", { type: "linear", beginAtZero: true }),
        y: axis("median latency, milliseconds", { type: "logarithmic" }),
      },
      plugins: {
        tooltip: {
          callbacks: {
            label: (it) => it.dataset.label + ", " + it.raw.callers + " callers: " +
              it.parsed.x.toFixed(0) + " a second, " + it.parsed.y.toFixed(2) + " ms",
          },
        },
      },
    },
  });

  // Parts below 1 are spread as by nines: half, 90 %, 99 %, 99.9 %.
  const nines = (part) => -Math.log10(Math.max(1 - part, 1e-4));
  const percent = (value) => {
    const known = { 0: "0 %", 1: "90 %", 2: "99 %", 3: "99.9 %" };
    return known[value] === undefined ? "" : known[value];
  };
  report.workloads.forEach((workload, at) => {
    draw("cdf-" + at, {
      type: "line",
      data: {
        datasets: workload.systems.map((it) => ({
          ...line(it.system, it.cdf.map(([us, part]) => ({ x: Math.max(us, 1) / 1000, y: nines(part) }))),
          pointRadius: 0,
        })),
      },
      options: {
        interaction: { mode: "nearest", intersect: false },
        scales: {
          x: axis("latency, milliseconds", { type: "logarithmic" }),
          y: axis("operations that were faster", {
            min: 0, max: 3, ticks: { stepSize: 1, callback: percent },
          }),
        },
        plugins: {
          tooltip: {
            callbacks: {
              label: (it) =>
                it.dataset.label + ": " + (100 * (1 - Math.pow(10, -it.parsed.y))).toFixed(2) +
                " % within " + it.parsed.x.toFixed(2) + " ms",
            },
          },
        },
      },
    });
  });

  report.faults.forEach((fault, at) => {
    const systems = fault.systems.filter((it) => !it.error);
    draw("fault-" + at, {
      type: "line",
      data: {
        datasets: systems.map((it) => ({
          ...line(it.system, it.writes.map((writes, piece) => ({ x: piece / 10, y: writes * 10 }))),
          pointRadius: 0,
          stepped: true,
        })),
      },
      options: {
        interaction: { mode: "index", intersect: false },
        scales: {
          x: axis("seconds", { type: "linear", min: 0 }),
          y: axis("acknowledged writes per second", { beginAtZero: true }),
        },
        plugins: { shade: { from: fault.from_s, to: fault.to_s } },
      },
      plugins: [shade],
    });
  });

  // One write over time: nodes side by side, time down, messages from the node that sent them to the
  // one that received them.
  report.paths.forEach((path, at) => {
    if (path.error) return;
    const nodes = [...new Set([path.leader, ...path.hops.map((it) => it.node)])]
      .sort((a, b) => (b === path.leader) - (a === path.leader) || a - b);
    const place = (node) => nodes.indexOf(node) + 1;
    const color = styleOf(path.system).color;
    const left = path.hops.map((it) => ({ ...it }));
    const take = (found) => {
      const index = left.findIndex(found);
      return index < 0 ? null : left.splice(index, 1)[0];
    };
    // What comes long after the answer is in the table.
    const last = Math.min(1.4 * path.took_us, Math.max(path.took_us, ...path.hops.map((it) => it.at_us)));
    const segment = (points, more) => ({
      data: points, borderColor: color, backgroundColor: color, borderWidth: 1.5, pointRadius: 0, ...more,
    });
    const sets = [];
    path.hops.filter((it) => it.what === "sent").forEach((sent) => {
      const received = take((it) => it.what === "received" && it.node === sent.peer &&
        it.peer === sent.node && it.message === sent.message && it.at_us >= sent.at_us);
      const to = received || { node: sent.peer, at_us: sent.at_us };
      sets.push(segment(
        [{ x: place(sent.node), y: sent.at_us }, { x: place(to.node), y: to.at_us }],
        { label: sent.message, pointRadius: [2, 4], pointStyle: "triangle" }));
    });
    path.hops.filter((it) => it.what === "forced").forEach((it) => {
      sets.push(segment(
        [{ x: place(it.node), y: Math.max(0, it.at_us - it.took_us) }, { x: place(it.node), y: it.at_us }],
        { label: "forced to disk", borderWidth: 8, borderColor: css("--muted") }));
    });
    [["asked", "rectRot"], ["applied", "circle"], ["answered", "rectRot"]].forEach(([what, pointStyle]) => {
      const points = path.hops.filter((it) => it.what === what)
        .map((it) => ({ x: place(it.node), y: it.at_us }));
      if (points.length) {
        sets.push(segment(points, {
          label: what, showLine: false, pointRadius: 5, pointStyle, borderColor: css("--text"),
          backgroundColor: css("--text"),
        }));
      }
    });
    sets.push(segment(
      [{ x: 0.5, y: path.took_us }, { x: nodes.length + 0.5, y: path.took_us }],
      { label: "the client has its answer", borderDash: [6, 4], borderColor: css("--text"), borderWidth: 1 }));
    draw("path-" + at, {
      type: "line",
      data: { datasets: sets },
      options: {
        interaction: { mode: "nearest", intersect: false },
        scales: {
          x: axis("", {
            type: "linear", min: 0.5, max: nodes.length + 0.5, position: "top",
            afterBuildTicks: (scale) => { scale.ticks = nodes.map((node) => ({ value: place(node) })); },
            ticks: {
              autoSkip: false,
              callback: (value) => {
                const node = nodes[value - 1];
                return node === undefined ? "" : "n" + node + (node === path.leader ? " (leads)" : "");
              },
            },
          }),
          y: axis("microseconds", { reverse: true, min: 0, max: Math.ceil(last / 100) * 100 }),
        },
        plugins: {
          legend: { display: false },
          tooltip: {
            callbacks: {
              title: () => "",
              label: (it) => it.dataset.label + ", " + it.parsed.y.toFixed(0) + " us",
            },
          },
        },
      },
    });
  });

  // The papers' experiments: a colour for each system, a dash for each series.
  const dashes = [[], [6, 4], [2, 3]];
  report.experiments.forEach((experiment, at) => {
    const points = experiment.points.filter((it) => !it.error);
    const series = [...new Set([...points, ...experiment.paper].map((it) => it.series))];
    const sets = (of, name, color, point) => series
      .map((one) => [one, of.filter((it) => it.series === one)])
      .filter(([, its]) => its.length)
      .map(([one, its]) => ({
        label: name + (one ? ", " + one : ""),
        data: its.map(({ x, y }) => ({ x, y })),
        borderColor: color,
        backgroundColor: color,
        pointStyle: point,
        borderDash: dashes[series.indexOf(one) % dashes.length],
        borderWidth: 2,
      }));
    const names = [...new Set(points.map((it) => it.system))];
    draw("experiment-" + at, {
      type: "line",
      data: {
        datasets: [
          ...names.flatMap((name) => sets(points.filter((it) => it.system === name), name,
            styleOf(name).color, styleOf(name).point)),
          ...sets(experiment.paper, "the paper", css("--muted"), "crossRot"),
        ],
      },
      options: {
        scales: {
          x: axis(experiment.setting, {
            type: experiment.setting.includes("percent") ? "linear" : "logarithmic",
          }),
          y: axis(experiment.quantity, { type: "logarithmic" }),
        },
      },
    });
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    dress();
    charts.forEach((chart) => {
      Object.values(chart.options.scales).forEach((scale) => {
        scale.ticks.color = css("--text");
        scale.title.color = css("--text");
        scale.grid.color = css("--line");
      });
      chart.update();
    });
  });
  // For tests: whether everything was drawn.
  window.triremeCharts = charts;
})();
