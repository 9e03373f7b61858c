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

// A probe is a request that must not show whether a user exists. Its answers must be the same.
type probe struct {
	environ []string
	names   map[string]string // patterns of what it asks for, by what is known of them; all have the same length
	ask     func(p *process, token, name string) (reply, error)
	status  int
}

func forgotProbe(p *process, _, name string) (reply, error) {
	return p.ask("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":%q}`, name))
}

var probes = map[string]probe{
	"forgot": {
		names:  map[string]string{"unknown": "nobody-%04d", "known": "member-%04d", "disabled": "barred-%04d"},
		ask:    forgotProbe,
		status: 202,
	},
	"forgot, by address": {
		names:  map[string]string{"unknown": "nobody-%04d@example.com", "known": "member-%04d@example.com"},
		ask:    forgotProbe,
		status: 202,
	},
	"register": {
		environ: []string{"REGISTRATION=verified"},
		names: map[string]string{
			"unknown":         `"username":"nobody-%04d","email":"nobody-%04[1]d@example.com"`,
			"a taken address": `"username":"nobody-%04d","email":"member-%04[1]d@example.com"`,
			"a taken name":    `"username":"member-%04d","email":"nobody-%04[1]d@example.com"`,
		},
		ask: func(p *process, _, name string) (reply, error) {
			return p.ask("", "POST", "/api/register", fmt.Sprintf(`{%s,"password":%q}`, name, goodPassword))
		},
		status: 202,
	},
	"a verify link for another user": {
		names: map[string]string{"unknown": "9%04d", "known": "1%04d"}, // ids
		ask: func(p *process, token, name string) (reply, error) {
			return p.ask(token, "POST", "/api/users/"+name+"/email/verify", "")
		},
		status: 403,
	},
}

// start starts a userd with n users of each kind, whose outbox works, and returns the token
// of another user.
func (c *probe) start(t *testing.T, n int) (p *process, token string) {
	t.Helper()
	dir := withUsers(t, append(append(numberedNames("barred-", n), numberedNames("member-", n)...), "caller")...)
	runSQL(t, another(t, filepath.Join(dir, "app.db")),
		`UPDATE user SET disabled = 1 WHERE username LIKE 'barred-%'`,
		`UPDATE user SET id = 10000 + substr(username, 8) WHERE username LIKE 'member-%'`)
	p = startUserd(t, dir, append(startMailServer(t).environ(), c.environ...))
	return p, p.login("caller", goodPassword)
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
			p, token := c.start(t, 1)
			answer := func(kind string) string {
				r, err := c.ask(p, token, fmt.Sprintf(c.names[kind], 0))
				if err != nil || r.status != c.status {
					t.Errorf("the answer for %s is %d %s, %v, want %d", kind, r.status, r.body, err, c.status)
				}
				return sameAnswer(r)
			}
			want := answer("unknown")
			for kind := range c.names {
				if got := answer(kind); got != want {
					t.Errorf("the answer for %s is %s, want that for an unknown one, %s", kind, got, want)
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
	p, token := c.start(t, samplesOfKind)
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
		name = fmt.Sprintf(name, n/2)
		time.Sleep(time.Duration(rand.Int64N(int64(10 * time.Millisecond)))) // so that the outbox works meanwhile
		start := time.Now()
		if r, err := c.ask(p, token, name); err != nil || r.status != c.status {
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

// Requests for one login in a row, of which the limits let one mail leave, must not keep the
// outbox busy longer if the login exists: a client could measure that by other requests.
func TestTheTimeOfTheOutboxDoesNotShowWhoExists(t *testing.T) {
	if !*timing {
		t.Skip("runs with -timing")
	}
	ratio := outboxRatio(t)
	if ratio < 0.75 || ratio > 1.33 {
		t.Logf("the ratio is %.2f; measuring again", ratio)
		ratio = outboxRatio(t)
	}
	t.Logf("the ratio is %.2f", ratio)
	if ratio < 0.75 || ratio > 1.33 {
		t.Errorf("the work for a login that exists takes %.2f times as long as for one that does not, want 0.75 to 1.33", ratio)
	}
}

// outboxRatio returns how long the outbox takes for requests for a login that exists, divided
// by how long it takes for those for another login.
func outboxRatio(t *testing.T) float64 {
	t.Helper()
	s := newService(t, withMail, unlimited, func(c *settings) { c.mailsPerHour = 100_000 })
	p := s.postbox()
	s.register("member")
	s.forgot("member")
	p.deliver()
	took := make(map[string][]time.Duration)
	for range 60 {
		for _, login := range []string{"member", "nobody"} {
			for range mailBatch {
				s.forgot(login)
			}
			start := time.Now()
			p.none(login)
			took[login] = append(took[login], time.Since(start))
		}
	}
	median := func(list []time.Duration) time.Duration {
		slices.Sort(list)
		return list[len(list)/2]
	}
	return float64(median(took["member"])) / float64(median(took["nobody"]))
}
