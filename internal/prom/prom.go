// Package prom counts, and writes what is counted in Prometheus' text format.
package prom

import (
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// A Histogram counts values by their size.
type Histogram struct {
	bounds []int64         // the highest value of each bucket but the last, which has none
	counts []atomic.Uint64 // of the buckets
	sum    atomic.Int64
}

func NewHistogram(bounds []int64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1)}
}

func (h *Histogram) Observe(value int64) {
	i := 0
	for i < len(h.bounds) && value > h.bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(value)
}

// Counters are counters that differ by a word. The words are known beforehand:
// nobody can make up more, and a rate can be taken of the first of its kind.
type Counters struct {
	words []string
	n     []atomic.Uint64
}

func NewCounters(words ...string) Counters {
	return Counters{words, make([]atomic.Uint64, len(words))}
}

func (c *Counters) Add(word string) {
	if i := slices.Index(c.words, word); i >= 0 {
		c.n[i].Add(1)
	}
}

// A Page is metrics in the text format 0.0.4 of Prometheus.
type Page struct{ text []byte }

// Bytes returns the text.
func (p *Page) Bytes() []byte { return p.text }

// Family begins the samples of one name.
func (p *Page) Family(name, kind, help string) {
	p.text = append(p.text, "# HELP "+name+" "+help+"\n# TYPE "+name+" "+kind+"\n"...)
}

// Sample adds a sample. The labels are as in the format, without the braces.
func (p *Page) Sample(name, labels string, value float64) {
	p.text = append(p.text, name...)
	if labels != "" {
		p.text = append(append(append(p.text, '{'), labels...), '}')
	}
	p.text = strconv.AppendFloat(append(p.text, ' '), value, 'g', -1, 64)
	p.text = append(p.text, '\n')
}

func (p *Page) Gauge(name, help string, value float64) {
	p.Family(name, "gauge", help)
	p.Sample(name, "", value)
}

func (p *Page) Counter(name, help string, value float64) {
	p.Family(name, "counter", help)
	p.Sample(name, "", value)
}

// Counters adds a family of counters that differ by a label.
func (p *Page) Counters(name, help, label string, c *Counters) {
	p.Family(name, "counter", help)
	for i, word := range c.words {
		p.Sample(name, label+"="+strconv.Quote(word), float64(c.n[i].Load()))
	}
}

// Histogram adds the samples of a histogram whose values are in a unit.
func (p *Page) Histogram(name, labels string, h *Histogram, unit float64) {
	sum := float64(h.sum.Load()) / unit
	comma := ""
	if labels != "" {
		comma = ","
	}
	n := uint64(0)
	for i := range h.counts {
		bound := math.Inf(1)
		if i < len(h.bounds) {
			bound = float64(h.bounds[i]) / unit
		}
		n += h.counts[i].Load()
		p.Sample(name+"_bucket", labels+comma+`le="`+strconv.FormatFloat(bound, 'g', -1, 64)+`"`, float64(n))
	}
	p.Sample(name+"_sum", labels, sum)
	p.Sample(name+"_count", labels, float64(n))
}

// runtimeFamilies are those of Go's runtime, under the names that Prometheus'
// own Go client gives them. Reading them does not stop the world.
var runtimeFamilies = []struct{ from, name, kind, help string }{
	{"/sched/goroutines:goroutines", "go_goroutines", "gauge", "Goroutines that exist."},
	{"/memory/classes/heap/objects:bytes", "go_memstats_heap_alloc_bytes", "gauge", "Memory of objects on the heap."},
	{"/gc/heap/allocs:bytes", "go_memstats_alloc_bytes_total", "counter", "Memory ever allocated on the heap."},
	{"/gc/heap/allocs:objects", "go_memstats_mallocs_total", "counter", "Objects ever allocated on the heap."},
	{"/gc/heap/goal:bytes", "go_memstats_next_gc_bytes", "gauge", "Size of the heap at which the next collection begins."},
	{"/memory/classes/total:bytes", "go_memstats_sys_bytes", "gauge", "Memory that the Go runtime has from the system; SQLite has more."},
}

func (p *Page) GoFamilies() {
	samples := make([]metrics.Sample, len(runtimeFamilies))
	for i, f := range runtimeFamilies {
		samples[i].Name = f.from
	}
	metrics.Read(samples)
	for i, f := range runtimeFamilies {
		if samples[i].Value.Kind() == metrics.KindUint64 {
			p.Family(f.name, f.kind, f.help)
			p.Sample(f.name, "", float64(samples[i].Value.Uint64()))
		}
	}
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	p.Family("go_gc_duration_seconds", "summary", "Pauses of the garbage collector.")
	p.Sample("go_gc_duration_seconds_sum", "", gc.PauseTotal.Seconds())
	p.Sample("go_gc_duration_seconds_count", "", float64(gc.NumGC))
}

// ProcessFamilies adds what Linux tells of the process, under the names that
// Prometheus' clients give it (https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics).
// Other systems have no /proc, and these are left out.
func (p *Page) ProcessFamilies() {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return
	}
	// From the third field on, proc(5): the second may hold anything.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	field := func(n int) (v float64) {
		if n-3 < len(fields) {
			v, _ = strconv.ParseFloat(fields[n-3], 64)
		}
		return v
	}
	const ticks = 100 // a second, on every system that Go knows
	p.Counter("process_cpu_seconds_total", "Processor time, user and system.", (field(14)+field(15))/ticks)
	p.Gauge("process_virtual_memory_bytes", "Address space.", field(23))
	p.Gauge("process_resident_memory_bytes", "Memory in use.", field(24)*float64(os.Getpagesize()))
	if boot, ok := procNumber("/proc/stat", "btime"); ok {
		p.Gauge("process_start_time_seconds", "When the process started, in Unix time.", boot+field(22)/ticks)
	}
	if dir, err := os.Open("/proc/self/fd"); err == nil {
		names, _ := dir.Readdirnames(-1)
		dir.Close()
		p.Gauge("process_open_fds", "Open file descriptors.", float64(len(names)-1)) // one is dir's
	}
	if most, ok := procNumber("/proc/self/limits", "Max open files"); ok {
		p.Gauge("process_max_fds", "File descriptors that the process may have open.", most)
	}
}

// procNumber returns the number behind a word at the beginning of a line.
func procNumber(file, word string) (float64, bool) {
	data, _ := os.ReadFile(file)
	_, rest, _ := strings.Cut("\n"+string(data), "\n"+word+" ")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, false
	}
	n, err := strconv.ParseFloat(fields[0], 64)
	return n, err == nil
}
