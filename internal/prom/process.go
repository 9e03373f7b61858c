package prom

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
)

// A runtimeFamily is a metric of package runtime/metrics as a family.
type runtimeFamily struct{ source, name, kind, help string }

// runtimeFamilies have the names that Prometheus' own Go client uses. Reading
// them does not stop the world.
var runtimeFamilies = []runtimeFamily{
	{"/sched/goroutines:goroutines", "go_goroutines", "gauge", "Goroutines that exist."},
	{"/memory/classes/heap/objects:bytes", "go_memstats_heap_alloc_bytes", "gauge", "Memory of objects on the heap."},
	{"/gc/heap/allocs:bytes", "go_memstats_alloc_bytes_total", "counter", "Memory ever allocated on the heap."},
	{"/gc/heap/allocs:objects", "go_memstats_mallocs_total", "counter", "Objects ever allocated on the heap."},
	{"/gc/heap/goal:bytes", "go_memstats_next_gc_bytes", "gauge", "Size of the heap at which the next collection begins."},
	{"/memory/classes/total:bytes", "go_memstats_sys_bytes", "gauge", "Memory that the Go runtime got from the system."},
}

// GoFamilies adds the families of the Go runtime: goroutines, memory and garbage
// collection.
func (p *Page) GoFamilies() {
	p.readRuntime(runtimeFamilies)
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	p.Family("go_gc_duration_seconds", "summary", "Pauses of the garbage collector.")
	p.Sample("go_gc_duration_seconds_sum", "", gc.PauseTotal.Seconds())
	p.Sample("go_gc_duration_seconds_count", "", float64(gc.NumGC))
}

func (p *Page) readRuntime(families []runtimeFamily) {
	samples := make([]metrics.Sample, len(families))
	for i, f := range families {
		samples[i].Name = f.source
	}
	metrics.Read(samples)
	for i, f := range families {
		if samples[i].Value.Kind() == metrics.KindUint64 { // a later Go may drop a metric
			p.Family(f.name, f.kind, f.help)
			p.Sample(f.name, "", float64(samples[i].Value.Uint64()))
		}
	}
}

// ProcessFamilies adds what Linux says about the process, under the names of
// https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics.
// On a system without /proc it adds nothing.
func (p *Page) ProcessFamilies() { p.processFamilies("/proc") }

func (p *Page) processFamilies(proc string) {
	stat, err := os.ReadFile(proc + "/self/stat")
	if err != nil {
		return
	}
	// proc(5) numbers the fields from 1. The second one is the program's name in
	// parentheses and may itself hold spaces and parentheses.
	const firstAfterName = 3
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	field := func(n int) (v float64) {
		if i := n - firstAfterName; i < len(fields) {
			v, _ = strconv.ParseFloat(fields[i], 64)
		}
		return v
	}
	const ticks = 100 // per second: USER_HZ, the same on every architecture that Go supports
	p.Counter("process_cpu_seconds_total", "Processor time, user and system.", (field(14)+field(15))/ticks)
	p.Gauge("process_virtual_memory_bytes", "Address space.", field(23))
	p.Gauge("process_resident_memory_bytes", "Memory in use.", field(24)*float64(os.Getpagesize()))
	if boot, ok := numberAfter(proc+"/stat", "btime"); ok {
		p.Gauge("process_start_time_seconds", "When the process started, in Unix time.", boot+field(22)/ticks)
	}
	if dir, err := os.Open(proc + "/self/fd"); err == nil {
		names, _ := dir.Readdirnames(-1)
		dir.Close()
		p.Gauge("process_open_fds", "Open file descriptors.", float64(len(names)-1)) // one is dir itself
	}
	if limit, ok := numberAfter(proc+"/self/limits", "Max open files"); ok {
		p.Gauge("process_max_fds", "File descriptors that the process may have open.", limit)
	}
}

// numberAfter returns the number that follows words at the beginning of a line.
func numberAfter(file, words string) (float64, bool) {
	data, _ := os.ReadFile(file)
	_, rest, _ := strings.Cut("\n"+string(data), "\n"+words+" ")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, false
	}
	n, err := strconv.ParseFloat(fields[0], 64)
	return n, err == nil
}
