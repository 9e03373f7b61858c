package throttle

import (
	"testing"
	"time"
)

// fullTable returns a table with maxKeys entries, of which that of key 0 would be
// forgotten first.
func fullTable() table {
	var full table
	for key := range Key(maxKeys) {
		full.put(key, entry{gone: time.Hour + time.Duration(key)})
	}
	return full
}

func TestTheLimiterSurvivesAFlood(t *testing.T) {
	t.Parallel()
	d := Delays{Name: "login", Free: 5, First: time.Second, Max: 15 * time.Minute, Memory: time.Hour}
	const now = time.Hour
	for range 20 {
		d.Fail(1, now)
	}
	for key := range Key(3 * maxKeys) {
		d.Fail(key+2, now+time.Duration(key))
	}
	if n := len(d.failed); n != maxKeys {
		t.Errorf("%d entries, want %d", n, maxKeys)
	}
	wantWait(t, d.Check(1, now), "login", 15*time.Minute)
}

func TestAKnownKeyRemovesNoOtherFromAFullTable(t *testing.T) {
	t.Parallel()
	full := fullTable()
	for key := range Key(1000) {
		full.put(key, entry{gone: 2 * time.Hour})
	}
	for key := range Key(maxKeys) {
		if full.get(key, 0) == (entry{}) {
			t.Fatalf("key %d is gone", key)
		}
	}
}

// A search of all entries would always find the one that is forgotten first. A
// few random ones include it once in 8,192 times.
func TestAFullTableLooksOnlyAtAFewEntries(t *testing.T) {
	t.Parallel()
	full := fullTable()
	for key := range Key(3) {
		full.put(maxKeys+key, entry{gone: 2 * time.Hour})
		if full.get(0, 0) != (entry{}) {
			return
		}
		full.put(0, entry{gone: time.Hour})
	}
	t.Error("three times of three, the entry that would be forgotten first was removed")
}
