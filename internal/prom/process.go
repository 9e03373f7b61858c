package prom

import (
	"bytes"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
)

// A runtimeFamily is a family with the metric source of package runtime/metrics, which
// can be read without stopping the world.
type runtimeFamily struct{ source, name, kind, help string }

// runtimeFamilies have the names that Prometheus' own Go client uses.
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
	for _, f := range families {
		sample := []metrics.Sample{{Name: f.source}}
		metrics.Read(sample)
		if v := sample[0].Value; v.Kind() == metrics.KindUint64 { // a later Go may drop a metric
			p.single(f.name, f.kind, f.help, float64(v.Uint64()))
		}
	}
}

// ProcessFamilies adds the processor time, memory and files of the process, with the
// names of https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics.
// Without Linux's /proc it adds nothing.
func (p *Page) ProcessFamilies() { p.processFamilies("/proc") }

func (p *Page) processFamilies(proc string) {
	stat, err := os.ReadFile(proc + "/self/stat")
	if err != nil {
		return
	}
	// proc(5) numbers the fields from 1. The second field is the program's name in
	// parentheses, which can contain spaces and parentheses.
	const firstAfterName = 3
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
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
