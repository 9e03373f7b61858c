package main

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// timing says that the tests may measure times for minutes. A busy machine can shift such a
// measurement, so it does not belong to go test without the flag, and it is repeated once:
// a difference of the program shows every time.
var timing = flag.Bool("timing", false, "measure whether the time of an answer shows that a user exists; for minutes, on a machine without other work")

// A probe is a request that must not show whether a user exists. The answers for both names
// must be the same.
type probe struct {
	environ []string
	names   map[string]func(i int) string // by what is known of them
	ask     func(p *process, name string) (reply, error)
}

func forgotProbe(p *process, name string) (reply, error) {
	return p.ask("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":%q}`, name))
}

// probes are the requests about users that strangers can make, with the kinds of names, which
// all have the same length.
var probes = map[string]probe{
	"forgot": {
		names: map[string]func(i int) string{
			"unknown":  func(i int) string { return fmt.Sprintf("nobody-%04d", i) },
			"known":    func(i int) string { return fmt.Sprintf("member-%04d", i) },
			"disabled": func(i int) string { return fmt.Sprintf("barred-%04d", i) },
		},
		ask: forgotProbe,
	},
	"forgot, by address": {
		names: map[string]func(i int) string{
			"unknown": func(i int) string { return fmt.Sprintf("nobody-%04d@example.com", i) },
			"known":   func(i int) string { return fmt.Sprintf("member-%04d@example.com", i) },
		},
		ask: forgotProbe,
	},
}

// start starts a userd with n users of each kind, and an outbox that works.
func (c *probe) start(t *testing.T, n int) *process {
	t.Helper()
	dir := withUsers(t, append(numberedNames("member-", n), numberedNames("barred-", n)...)...)
	runSQL(t, another(t, filepath.Join(dir, "app.db")), `UPDATE user SET disabled = 1 WHERE username LIKE 'barred-%'`)
	return startUserd(t, dir, append(startMailServer(t).environ(), c.environ...))
}

// sameAnswer returns what clients see of an answer except its date and its id.
func sameAnswer(r reply) string {
	header := maps.Clone(r.header)
	delete(header, "Date")
	delete(header, "X-Request-Id")
	return fmt.Sprint(r.status, " ", header, " ", r.body)
}

func TestAnAnswerDoesNotShowWhoExists(t *testing.T) {
	t.Parallel()
	for name, c := range probes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := c.start(t, 1)
			answers := make(map[string]string)
			for kind, name := range c.names {
				r, err := c.ask(p, name(0))
				if err != nil {
					t.Fatal(err)
				}
				answers[kind] = sameAnswer(r)
				if r.status != 202 || answers[kind] != cmp.Or(answers["unknown"], answers[kind]) {
					t.Errorf("the answer for %s is %s, want that for an unknown one, %s", kind, answers[kind], answers["unknown"])
				}
			}
		})
	}
}

func TestTheTimeOfAnAnswerDoesNotShowWhoExists(t *testing.T) {
	if !*timing {
		t.Skip("runs with -timing")
	}
	for name, c := range probes {
		t.Run(name, func(t *testing.T) {
			for kind := range c.names {
				if kind == "unknown" {
					continue
				}
				auc := c.measure(t, kind)
				if auc < 0.45 || auc > 0.55 {
					t.Logf("%s: AUC %.3f; measuring again", kind, auc)
					auc = c.measure(t, kind)
				}
				t.Logf("%s: AUC %.3f", kind, auc)
				if auc < 0.45 || auc > 0.55 {
					t.Errorf("the times for %s names differ from those for unknown ones: the AUC is %.3f, want 0.45 to 0.55", kind, auc)
				}
			}
		})
	}
}

// samplesOfKind is how many answers are measured for names of each kind.
const samplesOfKind = 1000

// measure returns how often an answer for a name of this kind takes longer than one for an
// unknown name: the area under the ROC curve, which is the statistic of Mann and Whitney
// divided by the number of pairs. It is 0.5 if the times have the same distribution. The
// requests come in a random order on one connection.
func (c *probe) measure(t *testing.T, kind string) float64 {
	t.Helper()
	p := c.start(t, samplesOfKind)
	type sample struct {
		of   bool // the kind
		took time.Duration
	}
	var samples []sample
	for _, n := range rand.Perm(2 * samplesOfKind) {
		of, name := n%2 == 0, c.names["unknown"]
		if of {
			name = c.names[kind]
		}
		login := name(n / 2)
		time.Sleep(time.Duration(rand.Int64N(int64(10 * time.Millisecond)))) // so that the outbox works meanwhile
		start := time.Now()
		if r, err := c.ask(p, login); err != nil || r.status != 202 {
			t.Fatalf("%d %s, %v", r.status, r.body, err)
		}
		samples = append(samples, sample{of, time.Since(start)})
	}
	slices.SortFunc(samples, func(a, b sample) int { return cmp.Compare(a.took, b.took) })
	others, pairs := 0, 0.0
	for _, s := range samples {
		if s.of {
			pairs += float64(others)
		} else {
			others++
		}
	}
	return pairs / (samplesOfKind * samplesOfKind)
}
