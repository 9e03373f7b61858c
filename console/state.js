// The state of the server, for admins: charts of /metrics, sampled while the screen is open.

const sampleEvery = 2000, keptSamples = 150; // milliseconds, and five minutes of them

// parseMetrics returns the samples of a page in Prometheus' text format: [name, labels, value].
function parseMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^([a-z_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, key, value] of (found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[key] = value;
    samples.push([found[1], labels, Number(found[3])]);
  }
  return samples;
}

const requestSeconds = "http_request_duration_seconds";
const sumOf = (samples, key, test = () => true) =>
  samples.reduce((sum, [found, labels, value]) => found === key && test(labels) ? sum + value : sum, 0);

// measure reduces a page of metrics to the numbers that the charts show.
function measure(samples) {
  const logins = (...statuses) => sumOf(samples, requestSeconds + "_count",
    l => l.route.startsWith("/api/login") && statuses.includes(l.status));
  const buckets = new Map();
  for (const [key, l, value] of samples) {
    if (key === requestSeconds + "_bucket" && l.route !== "/api/events") buckets.set(l.le, (buckets.get(l.le) ?? 0) + value);
  }
  const gauge = key => sumOf(samples, key);
  return {
    at: performance.now(),
    ok: logins("200"), refused: logins("401", "403"), limited: logins("429"), busy: logins("503"),
    requests: sumOf(samples, requestSeconds + "_count"), buckets,
    running: gauge("userd_password_hashes_running"), waiting: gauge("userd_password_hashes_waiting"),
    size: gauge("userd_database_size_bytes") / 1e6, log: gauge("userd_database_wal_size_bytes") / 1e6,
    users: gauge("userd_users"), sessions: gauge("userd_sessions"), keys: gauge("userd_api_keys"),
    mails: gauge("userd_mails_queued"), connections: gauge("userd_connections"), memory: gauge("process_resident_memory_bytes") / 1e6,
  };
}

// quantile returns the time in milliseconds below which a part of the requests between two
// measures lies: the upper limit of its bucket.
function quantile(now, before, p) {
  const limits = [...now.buckets.keys()].sort((a, b) => Number(a.replace("+Inf", "Infinity")) - Number(b.replace("+Inf", "Infinity")));
  const count = le => now.buckets.get(le) - (before.buckets.get(le) ?? 0);
  const all = count("+Inf");
  const found = limits.find(le => count(le) >= p * all);
  return all > 0 && found && found !== "+Inf" ? Number(found) * 1000 : 0;
}

const rate = key => (now, before) => Math.max(0, (now[key] - before[key]) / ((now.at - before.at) / 1000));
const value = key => now => now[key];

// The charts: a title, a unit, and lines [label, function of a measure and the one before].
const charts = [
  ["Logins", "a second", [["succeeded", rate("ok")], ["refused", rate("refused")], ["limited", rate("limited")], ["busy", rate("busy")]]],
  ["Requests", "a second", [["answered", rate("requests")]]],
  ["Latency", "ms", [["50 % within", (now, before) => quantile(now, before, .5)], ["95 % within", (now, before) => quantile(now, before, .95)]]],
  ["Password hashing", "", [["running", value("running")], ["waiting", value("waiting")]]],
  ["Database", "MB", [["file", value("size")], ["write-ahead log", value("log")]]],
  ["Users", "", [["users", value("users")], ["sessions", value("sessions")], ["API keys", value("keys")]]],
  ["Mail", "", [["waiting", value("mails")]]],
  ["Connections", "", [["open", value("connections")]]],
  ["Memory", "MB", [["resident", value("memory")]]],
];

const rounded = n => n.toLocaleString(undefined, { maximumFractionDigits: n < 10 ? 2 : n < 100 ? 1 : 0 });

async function showState(box) {
  const signal = screenSignal();
  const about = el("p", { class: "muted" }, "Measuring…");
  const drawn = charts.map(newChart);
  box.append(about, el("div", { class: "charts" }, drawn.map(c => c.box)));
  const measures = [];
  const sample = async () => {
    const samples = parseMetrics(await (await request("GET", "metrics", undefined, { signal, quiet: true })).text());
    measures.push(measure(samples));
    if (measures.length > keptSamples + 1) measures.shift();
    for (const c of drawn) c.draw(measures);
    const build = samples.find(([key]) => key === "userd_build_info")?.[1] ?? {};
    const since = sumOf(samples, "process_start_time_seconds");
    about.replaceChildren(`userd ${build.version}, ${build.go}. Started `, when(new Date(since * 1000).toISOString()),
      ". The charts show at most the last five minutes, since you opened this page.",
      ...(sumOf(samples, "userd_database_damaged") ? [el("strong", { class: "wrong" }, " The database is damaged: run userd check.")] : []));
  };
  while (!signal.aborted) {
    let wait = sampleEvery;
    try {
      if (!document.hidden || measures.length === 0) await sample();
    } catch (err) {
      if (signal.aborted) return;
      about.textContent = explain(err);
      if (!passes(err)) return;
      wait = Math.max(wait, 1000 * (err.retryAfter || 0));
    }
    await pause(wait, signal).catch(() => {});
  }
}

function newChart([title, unit, lines]) {
  const width = 300, height = 80;
  const paths = lines.map((_, i) => svg("polyline", { class: "line" + i, points: "", "vector-effect": "non-scaling-stroke" }));
  const numbers = lines.map(() => el("b", {}, "–"));
  const top = el("span", { class: "top muted small" });
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "axis", d: `M0 ${height - .5}H${width}M0 .5H${width}` }), ...paths);
  const box = card(title, el("div", { class: "plot" }, drawing, top),
    el("ul", { class: "legend" }, lines.map(([label], i) => el("li", { class: "line" + i }, el("span", {}, numbers[i], " ", label)))));
  if (unit) box.querySelector("h2").append(" ", el("span", { class: "muted small" }, unit));
  const draw = measures => {
    const series = lines.map(([, get]) => measures.slice(1).map((now, i) => get(now, measures[i])));
    const most = Math.max(1, ...series.flat());
    top.textContent = rounded(most);
    series.forEach((values, i) => {
      const latest = values.length ? values.at(-1) : lines[i][1].length === 1 ? lines[i][1](measures.at(-1)) : 0;
      numbers[i].textContent = rounded(latest);
      paths[i].setAttribute("points", values.map((v, n) =>
        `${((n + keptSamples - values.length) / (keptSamples - 1) * width).toFixed(1)},${(height - 2 - v / most * (height - 4)).toFixed(1)}`).join(" "));
    });
  };
  return { box, draw };
}
