package prom

import (
	"strings"
	"sync"
	"testing"
	"time"
)

func wantPage(t *testing.T, p *Page, lines ...string) {
	t.Helper()
	if got, want := string(p.Bytes()), strings.Join(lines, "\n")+"\n"; got != want {
		t.Errorf("the page is\n%s\nwant\n%s", got, want)
	}
}

func TestADurationFallsIntoItsBucket(t *testing.T) {
	t.Parallel()
	h := NewDurationHistogram()
	for _, d := range []time.Duration{1, 100 * time.Microsecond, 100*time.Microsecond + 1, 2 * time.Second, 10 * time.Second, time.Hour} {
		h.Observe(int64(d))
	}
	var p Page
	p.Histogram("x", Labels("a", "b"), h)
	wantPage(t, &p,
		`x_bucket{a="b",le="0.0001"} 2`,
		`x_bucket{a="b",le="0.0003"} 3`,
		`x_bucket{a="b",le="0.001"} 3`,
		`x_bucket{a="b",le="0.003"} 3`,
		`x_bucket{a="b",le="0.01"} 3`,
		`x_bucket{a="b",le="0.03"} 3`,
		`x_bucket{a="b",le="0.1"} 3`,
		`x_bucket{a="b",le="0.3"} 3`,
		`x_bucket{a="b",le="1"} 3`,
		`x_bucket{a="b",le="3"} 4`,
		`x_bucket{a="b",le="10"} 5`,
		`x_bucket{a="b",le="+Inf"} 6`,
		`x_sum{a="b"} 3612.000200002`,
		`x_count{a="b"} 6`,
	)
}

func TestAHistogramWithoutLabels(t *testing.T) {
	t.Parallel()
	h := NewHistogram(1, 1, 2)
	h.Observe(2)
	var p Page
	p.Histogram("x", "", h)
	wantPage(t, &p,
		`x_bucket{le="1"} 0`,
		`x_bucket{le="2"} 1`,
		`x_bucket{le="+Inf"} 1`,
		`x_sum 2`,
		`x_count 1`,
	)
}

func TestCountersIgnoreAnUnknownValue(t *testing.T) {
	t.Parallel()
	c := NewCounters("color", "red", "blue")
	c.Add("blue")
	c.Add("blue")
	c.Add("green")
	var p Page
	p.Counters("x_total", "X.", c)
	wantPage(t, &p,
		`# HELP x_total X.`,
		`# TYPE x_total counter`,
		`x_total{color="red"} 0`,
		`x_total{color="blue"} 2`,
	)
}

func TestAGaugeAndACounter(t *testing.T) {
	t.Parallel()
	var p Page
	p.Gauge("x", "X.", -0.5)
	p.Counter("y_total", "Y.", 3e15)
	wantPage(t, &p,
		`# HELP x X.`,
		`# TYPE x gauge`,
		`x -0.5`,
		`# HELP y_total Y.`,
		`# TYPE y_total counter`,
		`y_total 3e+15`,
	)
}

func TestTextIsEscaped(t *testing.T) {
	t.Parallel()
	var p Page
	p.Family("x", "gauge", "a \\ and\na \"quote\"")
	p.Sample("x", Labels("a", "\\\n\"é\xff", "b", ""), 1)
	wantPage(t, &p,
		`# HELP x a \\ and\na "quote"`,
		`# TYPE x gauge`,
		`x{a="\\\n\"é`+"\uFFFD"+`",b=""} 1`,
	)
}

func TestCountingAllocatesNothing(t *testing.T) {
	h, c := NewDurationHistogram(), NewCounters("a", "x", "y")
	if n := testing.AllocsPerRun(100, func() { h.Observe(1e6); c.Add("y") }); n != 0 {
		t.Errorf("Observe and Add allocate %v times", n)
	}
}

func TestNoValueIsLostWhenManyGoroutinesCount(t *testing.T) {
	t.Parallel()
	const goroutines, each = 8, 1000
	h, c := NewHistogram(1, 1), NewCounters("a", "x")
	var counting, reading sync.WaitGroup
	done := make(chan struct{})
	reading.Go(func() {
		for {
			var p Page
			p.Histogram("x", "", h)
			p.Counters("y_total", "Y.", c)
			select {
			case <-done:
				return
			default:
			}
		}
	})
	for range goroutines {
		counting.Go(func() {
			for i := range each {
				h.Observe(int64(i % 3))
				c.Add("x")
			}
		})
	}
	counting.Wait()
	close(done)
	reading.Wait()
	var p Page
	p.Histogram("x", "", h)
	p.Sample("y_total", "", float64(c.counts[0].Load()))
	wantPage(t, &p,
		`x_bucket{le="1"} 5336`, // of each 1000: 334 zeros and 333 ones
		`x_bucket{le="+Inf"} 8000`,
		`x_sum 7992`,
		`x_count 8000`,
		`y_total 8000`,
	)
}
