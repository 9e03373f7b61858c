// Package prom keeps counters and histograms, and writes them in Prometheus'
// text format, version 0.0.4
// (https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format).
//
// A program counts with a [Histogram], with [Counters], or with its own atomic
// integers: counting takes no lock and allocates nothing, so each request can do it.
// When a client asks, the program builds a [Page] from its counters. There is no
// registry and no global state: the order of the calls is the order of the page.
//
// A Page checks nothing. The caller uses valid metric names, begins each family once
// and adds the samples of a family directly after its beginning.
package prom

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// A Histogram counts integers in buckets. Its methods can be called concurrently.
type Histogram struct {
	bounds []int64         // the highest value of each bucket; the last bucket has no bound
	counts []atomic.Uint64 // of each bucket: one more than bounds
	sum    atomic.Int64
	unit   float64
}

// NewHistogram returns a histogram with one bucket for each bound, which is the
// bucket's highest value, and one for everything above. The bounds must ascend. A page
// shows values and bounds divided by unit: Prometheus wants base units, such as
// seconds, while integers count smaller ones.
func NewHistogram(unit int64, bounds ...int64) *Histogram {
	return &Histogram{bounds: bounds, counts: make([]atomic.Uint64, len(bounds)+1), unit: float64(unit)}
}

// NewDurationHistogram returns a histogram of nanoseconds, which a page shows in
// seconds. It has few bounds, from 100 microseconds to 10 seconds, two in each power
// of ten: each one adds a line to every series.
func NewDurationHistogram() *Histogram {
	return NewHistogram(int64(time.Second), 1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9, 3e9, 1e10)
}

// Observe counts a value. The sum of all values must stay below 2^63: 292 years of
// nanoseconds.
func (h *Histogram) Observe(value int64) {
	i, _ := slices.BinarySearch(h.bounds, value) // the first bound that is not below value
	h.counts[i].Add(1)
	h.sum.Add(value)
}

// Counters are counters of one family that differ by the value of one label. The
// values are fixed at the beginning: no client can add series, and each series starts
// with 0, because rate() does not see the first event of a series that is new.
type Counters struct {
	label  string
	values []string
	counts []atomic.Uint64
}

// NewCounters returns a counter, 0, for each value of the label.
func NewCounters(label string, values ...string) *Counters {
	return &Counters{label, values, make([]atomic.Uint64, len(values))}
}

// Add adds 1 to the counter of a value. It ignores a value that is not one of
// NewCounters.
func (c *Counters) Add(value string) {
	if i := slices.Index(c.values, value); i >= 0 {
		c.counts[i].Add(1)
	}
}

// ContentType is the Content-Type of a page.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// A Page collects metrics in the text format. The zero value is an empty page.
// Only one goroutine may use it.
type Page struct{ text []byte }

// Bytes returns the text. The next call of another method may overwrite it.
func (p *Page) Bytes() []byte { return p.text }

// Family begins the samples of a name. Its kind is "counter", "gauge", "histogram" or
// "summary".
func (p *Page) Family(name, kind, help string) {
	p.text = append(p.text, "# HELP "+name+" "+helpEscapes.Replace(help)+"\n# TYPE "+name+" "+kind+"\n"...)
}

// Sample adds a sample to the family. The labels are empty or come from [Labels].
func (p *Page) Sample(name, labels string, value float64) {
	p.text = append(p.text, name...)
	if labels != "" {
		p.text = append(p.text, "{"+labels+"}"...)
	}
	p.text = strconv.AppendFloat(append(p.text, ' '), value, 'g', -1, 64)
	p.text = append(p.text, '\n')
}

// Gauge adds a family of one gauge.
func (p *Page) Gauge(name, help string, value float64) { p.single(name, "gauge", help, value) }

// Counter adds a family of one counter.
func (p *Page) Counter(name, help string, value float64) { p.single(name, "counter", help, value) }

func (p *Page) single(name, kind, help string, value float64) {
	p.Family(name, kind, help)
	p.Sample(name, "", value)
}

// Counters adds a family of counters, in the order of NewCounters.
func (p *Page) Counters(name, help string, c *Counters) {
	p.Family(name, "counter", help)
	for i, value := range c.values {
		p.Sample(name, Labels(c.label, value), float64(c.counts[i].Load()))
	}
}

// Histogram adds the samples of a histogram to its family, with labels as for Sample.
// The count is always the sum of the buckets, even if other goroutines observe
// values meanwhile.
func (p *Page) Histogram(name, labels string, h *Histogram) {
	sum := float64(h.sum.Load()) / h.unit
	comma := ""
	if labels != "" {
		comma = ","
	}
	n := uint64(0)
	for i := range h.counts {
		bound := math.Inf(1) // which is written as +Inf
		if i < len(h.bounds) {
			bound = float64(h.bounds[i]) / h.unit
		}
		n += h.counts[i].Load()
		p.Sample(name+"_bucket", labels+comma+`le="`+strconv.FormatFloat(bound, 'g', -1, 64)+`"`, float64(n))
	}
	p.Sample(name+"_sum", labels, sum)
	p.Sample(name+"_count", labels, float64(n))
}

// Labels returns labels in the text format, without braces, from pairs of a name and
// a value. A value can be any text; invalid UTF-8 becomes U+FFFD.
func Labels(pairs ...string) string {
	var text strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			text.WriteByte(',')
		}
		text.WriteString(pairs[i] + `="` + valueEscapes.Replace(strings.ToValidUTF8(pairs[i+1], "\uFFFD")) + `"`)
	}
	return text.String()
}

// The text format escapes a line feed and a backslash, and in a value also a quote.
var (
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	valueEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)
