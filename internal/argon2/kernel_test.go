//go:build amd64 && !purego

package argon2

import "testing"

// Key can be told to use up to 4 TiB, which a test cannot fill.
func TestIndexesOfHugeMemory(t *testing.T) {
	t.Parallel()
	const size = 1<<30 - 1 // of a segment; the largest
	const count = segments * size
	for _, row := range []struct {
		name      string
		got, want uint32
	}{
		{"before the first", before(0, count), count - 1},
		{"before the second", before(1, count), 0},
		{"before the last", before(count-1, count), count - 2},
		{"the newest reference of the last", reference(0, 1, segments-1, size-1, size), count - 3},
		{"the newest reference of the first", reference(0, 1, 0, 0, size), count - 2},
		{"the newest reference of the last in the first pass", reference(0, 0, segments-1, size-1, size), count - 3},
	} {
		if row.got != row.want {
			t.Errorf("%s: block %d, want %d", row.name, row.got, row.want)
		}
	}
}
