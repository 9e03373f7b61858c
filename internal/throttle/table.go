package throttle

import "time"

// MaxKeys is how many keys a limit remembers, in some 3 MB.
const MaxKeys = 1 << 16

// candidates is how many entries compete for being forgotten.
const candidates = 8

// An entry is what a limit remembers of a key.
type entry struct {
	failures int
	until    time.Duration // the next try is not allowed before
	gone     time.Duration // the entry is forgotten from then on
}

// A table has at most MaxKeys entries. The nil table is empty.
type table map[Key]entry

// get returns the entry of key, and the zero entry if the table has none now.
func (t table) get(key Key, now time.Duration) entry {
	if e := t[key]; e.gone > now {
		return e
	}
	return entry{}
}

// put sets the entry of key. If the table is full, it removes one of a few random
// entries: the one that would be forgotten first. A search of the entire table
// would let each key of a flood cost a scan.
func (t *table) put(key Key, e entry) {
	if *t == nil {
		*t = make(table)
	}
	if _, ok := (*t)[key]; !ok && len(*t) >= MaxKeys {
		var first Key
		var gone time.Duration
		n := 0
		for k, other := range *t { // in random order
			if n == 0 || other.gone < gone {
				first, gone = k, other.gone
			}
			if n++; n == candidates {
				break
			}
		}
		delete(*t, first)
	}
	(*t)[key] = e
}
