package prom

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// samples returns the samples of a page without labels. It fails the test if a
// sample is not in its own family.
func samples(t *testing.T, p *Page) map[string]float64 {
	t.Helper()
	found := make(map[string]float64)
	family := ""
	for line := range strings.Lines(string(p.Bytes())) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			family, _, _ = strings.Cut(rest, " ")
		}
		if strings.HasPrefix(line, "# ") {
			continue
		}
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if family == "" || !strings.HasPrefix(name, family) {
			t.Errorf("%s is in the family %q", name, family)
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		found[name] = value
	}
	return found
}

func TestTheGoRuntimeIsMeasured(t *testing.T) {
	t.Parallel()
	runtime.GC()
	var p Page
	p.GoFamilies()
	got := samples(t, &p)
	for _, name := range []string{
		"go_goroutines",
		"go_memstats_heap_alloc_bytes",
		"go_memstats_alloc_bytes_total",
		"go_memstats_mallocs_total",
		"go_memstats_next_gc_bytes",
		"go_memstats_sys_bytes",
		"go_gc_duration_seconds_count",
		"go_gc_duration_seconds_sum",
	} {
		if got[name] <= 0 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
}

func TestAMetricThatGoDoesNotHaveIsLeftOut(t *testing.T) {
	t.Parallel()
	var p Page
	p.readRuntime([]runtimeFamily{
		{"/never/heard:of", "x", "gauge", "X."},
		{"/sched/gomaxprocs:threads", "y", "gauge", "Y."},
	})
	if got := samples(t, &p); len(got) != 1 || got["y"] < 1 {
		t.Errorf("the samples are %v", got)
	}
}

func TestThisProcessIsMeasured(t *testing.T) {
	var p Page
	p.ProcessFamilies()
	if runtime.GOOS != "linux" {
		if len(p.Bytes()) != 0 {
			t.Errorf("without /proc the page is\n%s", p.Bytes())
		}
		return
	}
	before := samples(t, &p)
	for start := time.Now(); before["process_cpu_seconds_total"] == 0 && time.Since(start) < 10*time.Second; { // until the first tick
		p = Page{}
		p.ProcessFamilies()
		before = samples(t, &p)
	}
	for _, name := range []string{"process_cpu_seconds_total", "process_virtual_memory_bytes", "process_resident_memory_bytes", "process_max_fds"} {
		if before[name] <= 0 {
			t.Errorf("%s is %v", name, before[name])
		}
	}
	if age := float64(time.Now().Unix()) - before["process_start_time_seconds"]; age < -2 || age > 3600 {
		t.Errorf("the process started %v seconds ago", age)
	}
	var files []*os.File
	for range 3 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	p = Page{}
	p.ProcessFamilies()
	if got := samples(t, &p)["process_open_fds"] - before["process_open_fds"]; got != float64(len(files)) {
		t.Errorf("process_open_fds grew by %v after %d files were opened", got, len(files))
	}
}

// writeProc makes a directory that looks like /proc with the given files.
func writeProc(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// A stat line as in proc(5). Fields 14, 15, 22, 23 and 24 are 250, 50, 700, 4096
// and 3.
const statLine = "7 (a) b) ) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 9 0 700 4096 3 0 0\n"

func TestProcFilesAreParsed(t *testing.T) {
	t.Parallel()
	page := float64(os.Getpagesize())
	for _, c := range []struct {
		claim string
		files map[string]string
		want  map[string]float64
	}{
		{"all of them", map[string]string{
			"self/stat":   statLine,
			"stat":        "cpu 1 2 3\nbtimes 1\nbtime 1000\nprocesses 9\n",
			"self/limits": "Limit Soft Hard Units\nMax open files            1024                 4096                 files\n",
			"self/fd/0":   "", "self/fd/1": "", "self/fd/2": "",
		}, map[string]float64{
			"process_cpu_seconds_total":     3,
			"process_virtual_memory_bytes":  4096,
			"process_resident_memory_bytes": 3 * page,
			"process_start_time_seconds":    1007,
			"process_open_fds":              2, // of a real /proc, one of the names is the directory itself
			"process_max_fds":               1024,
		}},
		{"only stat", map[string]string{"self/stat": statLine}, map[string]float64{
			"process_cpu_seconds_total":     3,
			"process_virtual_memory_bytes":  4096,
			"process_resident_memory_bytes": 3 * page,
		}},
		{"no limit", map[string]string{
			"self/stat":   statLine,
			"stat":        "btime \n",
			"self/limits": "Max open files            unlimited            unlimited            files\n",
		}, map[string]float64{
			"process_cpu_seconds_total":     3,
			"process_virtual_memory_bytes":  4096,
			"process_resident_memory_bytes": 3 * page,
		}},
		{"a stat line that is too short", map[string]string{"self/stat": "7 (a) S 1\n"}, map[string]float64{
			"process_cpu_seconds_total":     0,
			"process_virtual_memory_bytes":  0,
			"process_resident_memory_bytes": 0,
		}},
		{"a stat line that ends before field 24", map[string]string{"self/stat": strings.TrimSuffix(statLine, " 3 0 0\n")}, map[string]float64{
			"process_cpu_seconds_total":     3,
			"process_virtual_memory_bytes":  4096,
			"process_resident_memory_bytes": 0,
		}},
		{"nothing", nil, nil},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			var p Page
			p.processFamilies(writeProc(t, c.files))
			got := samples(t, &p)
			for name, want := range c.want {
				if value, ok := got[name]; !ok || value != want {
					t.Errorf("%s is %v (found: %t), want %v", name, value, ok, want)
				}
			}
			for name, value := range got {
				if _, ok := c.want[name]; !ok {
					t.Errorf("%s is %v, want it left out", name, value)
				}
			}
		})
	}
}
