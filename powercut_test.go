package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A diskCall is a system call that changed a file or the directory, or made the
// changes before it durable; or one that sent an answer.
type diskCall struct {
	begin, end int    // its lines in the trace: between them the process was in it
	name       string // of the system call
	file       string // without its directory; empty: the directory
	data       []byte
	at         int    // the offset of a write, or the size that is left
	answer     string // the X-Request-Id of the answer that was sent
}

// tracedCalls are all that SQLite changes files with, and what answers are sent with.
const tracedCalls = "open,openat,creat,pwrite64,pwritev,write,writev,ftruncate,fallocate,fsync,fdatasync,sync_file_range,unlink,unlinkat,rename,renameat,renameat2,link,linkat"

// traced returns a command that runs cmd under strace, which writes the trace.
func traced(t *testing.T, cmd *exec.Cmd, trace string) *exec.Cmd {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal(err)
	}
	// -D: userd, and not strace, is the child; -y: paths for descriptors; -xx: strings in hexadecimal.
	cmd.Args = append([]string{"strace", "-D", "-f", "--seccomp-bpf", "-qq", "-y", "-xx", "-s", "70000", "-e", "signal=none", "-e", "trace=" + tracedCalls, "-o", trace, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = strace
	return cmd
}

// readTrace returns the calls of a trace that have to do with the database
// app.db in dir, numbering its lines from first.
func readTrace(t *testing.T, trace, dir string, first int) (calls []*diskCall) {
	t.Helper()
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	type started struct {
		text string
		line int
	}
	within := make(map[string]started) // thread → the call that it is in
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for line := first; in.Scan(); line++ {
		thread, text, _ := strings.Cut(in.Text(), " ")
		text = strings.TrimLeft(text, " ")
		begin := line
		if beginning, ok := strings.CutSuffix(text, " <unfinished ...>"); ok {
			within[thread] = started{beginning, line}
			continue
		}
		if strings.HasPrefix(text, "<... ") {
			_, rest, _ := strings.Cut(text, " resumed>")
			text, begin = within[thread].text+rest, within[thread].line
			delete(within, thread)
		}
		if c := parseCall(t, text, dir); c != nil {
			c.begin, c.end = begin, line
			calls = append(calls, c)
		}
	}
	if err := in.Err(); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(calls, func(a, b *diskCall) int { return cmp.Compare(a.begin, b.begin) })
	return calls
}

var (
	callPattern = regexp.MustCompile(`^(\w+)\((.*)\) += (-?\d+)`)
	// A descriptor or a path, and the string after it.
	argumentPattern = regexp.MustCompile(`^(?:\d+<([^>]*)>(\(deleted\))?|(?:AT_FDCWD<[^>]*>, )?"([^"]*)")(?:, "([^"]*)")?`)
	answerPattern   = regexp.MustCompile(`^HTTP/1\.1 2[^\x00]*\r\nX-Request-Id: ([0-9a-f]{16})\r\n`)
)

// parseCall returns the call in a line of a trace, or nil if the call does not matter.
func parseCall(t *testing.T, text, dir string) *diskCall {
	t.Helper()
	unhex := func(s string) string {
		data, err := hex.DecodeString(strings.ReplaceAll(s, `\x`, ""))
		if err != nil {
			t.Fatalf("%v: %.200s", err, text)
		}
		return string(data)
	}
	call := callPattern.FindStringSubmatch(text)
	if call == nil || call[3][0] == '-' {
		return nil
	}
	arguments, result := call[2], call[3]
	m := argumentPattern.FindStringSubmatch(arguments)
	if m == nil || m[2] != "" { // a write to a removed file is lost in any case
		return nil
	}
	c := &diskCall{name: call[1]}
	path := unhex(m[1] + m[3])
	if strings.HasPrefix(path, "socket:") {
		if answer := answerPattern.FindStringSubmatch(unhex(m[4])); answer != nil {
			return &diskCall{name: "answer", answer: answer[1]}
		}
		return nil
	}
	if m[3] != "" && !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	if path != dir && filepath.Dir(path) != dir || strings.HasSuffix(path, "-shm") { // which is made anew after a crash
		return nil
	}
	if path != dir {
		c.file = filepath.Base(path)
	}
	last := func() int {
		n, err := strconv.Atoi(arguments[strings.LastIndex(arguments, " ")+1:])
		if err != nil {
			t.Fatalf("%v: %.200s", err, text)
		}
		return n
	}
	switch c.name {
	case "open", "openat":
		if !strings.Contains(arguments, "O_CREAT") {
			return nil
		}
		c.name = "create"
	case "pwrite64":
		c.data, c.at = []byte(unhex(m[4])), last()
		if result != strconv.Itoa(len(c.data)) {
			t.Fatalf("not all was written, or not all is in the trace: %.200s", text)
		}
	case "ftruncate":
		c.at = last()
	case "fsync", "fdatasync":
		c.name = "sync"
	case "unlink":
	default:
		t.Fatalf("this test does not know what %s does: %.200s", c.name, text)
	}
	return c
}

// An inode is the possible state of a file on the disk: its durable contents, and later
// changes, of which the disk may have any.
type inode struct {
	durable []byte
	pending []*diskCall
}

func (c *diskCall) change(image []byte) []byte {
	if c.name == "ftruncate" {
		return append(image, make([]byte, max(0, c.at-len(image)))...)[:c.at]
	}
	image = append(image, make([]byte, max(0, c.at+len(c.data)-len(image)))...)
	copy(image[c.at:], c.data)
	return image
}

// A disk is the possible state of a directory when the power is cut.
type disk struct {
	names map[string]*inode   // as the program saw them
	past  map[string][]*inode // what each was before, since the last sync of the directory
}

// diskAt replays the calls up to a line of the trace, and returns the disk and
// the answers that were sent.
func diskAt(calls []*diskCall, cut int) (d *disk, answered map[string]bool) {
	d = &disk{make(map[string]*inode), make(map[string][]*inode)}
	answered = make(map[string]bool)
	for _, c := range calls {
		if c.begin >= cut {
			break
		}
		switch c.name {
		case "answer":
			answered[c.answer] = true
		case "create":
			if d.names[c.file] == nil {
				d.past[c.file] = append(d.past[c.file], nil)
				d.names[c.file] = &inode{}
			}
		case "unlink":
			d.past[c.file] = append(d.past[c.file], d.names[c.file])
			delete(d.names, c.file)
		case "pwrite64", "ftruncate":
			d.names[c.file].pending = append(d.names[c.file].pending, c)
		case "sync":
			if c.end >= cut {
				continue // it is still down
			}
			if c.file == "" {
				clear(d.past)
				continue
			}
			f := d.names[c.file]
			for len(f.pending) > 0 && f.pending[0].end < c.begin {
				f.durable = f.pending[0].change(f.durable)
				f.pending = f.pending[1:]
			}
		}
	}
	return d, answered
}

const sectorSize = 512 // what a disk writes whole or not at all

// survive returns one of the contents that the file can have after the power
// cut. Each sector is as it was at some time since the last sync, whatever its
// neighbours are, and so is the size. newest is how likely the last state of
// each is.
func (f *inode) survive(r *rand.Rand, newest float64) []byte {
	choose := func(n int) int { // of n states
		if r.Float64() < newest {
			return n - 1
		}
		return r.IntN(n)
	}
	image := slices.Clone(f.durable)
	sizes := []int{len(image)}
	sectors := make(map[int][][]byte)
	sector := func(i int) []byte { // of the image, as long as a sector
		s := make([]byte, sectorSize)
		if i*sectorSize < len(image) {
			copy(s, image[i*sectorSize:])
		}
		return s
	}
	for _, c := range f.pending {
		from, to := c.at, c.at+len(c.data)
		if c.name == "ftruncate" {
			to = max(len(image), c.at)
		}
		for i := from / sectorSize; i*sectorSize < to; i++ {
			if sectors[i] == nil {
				sectors[i] = [][]byte{sector(i)}
			}
		}
		image = c.change(image)
		sizes = append(sizes, len(image))
		for i := from / sectorSize; i*sectorSize < to; i++ {
			sectors[i] = append(sectors[i], sector(i))
		}
	}
	size := sizes[choose(len(sizes))]
	image = append(image, make([]byte, max(0, size-len(image)))...)[:size]
	for i, states := range sectors {
		if i*sectorSize < size {
			copy(image[i*sectorSize:], states[choose(len(states))])
		}
	}
	return image
}

// leave writes into dir one of the states that the disk can be in after the power cut.
func (d *disk) leave(t *testing.T, r *rand.Rand, dir string) {
	t.Helper()
	newest := []float64{0, 0.1, 0.5, 0.9, 1}[r.IntN(5)]
	found := maps.Clone(d.names)
	for name, past := range d.past {
		if r.Float64() >= newest {
			if f := past[r.IntN(len(past))]; f != nil {
				found[name] = f
			} else {
				delete(found, name)
			}
		}
	}
	for name, f := range found {
		if err := os.WriteFile(filepath.Join(dir, name), f.survive(r, newest), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// From the system calls of a userd under load, the test builds the files as a disk could
// have them after a power cut: any data that was not synced may be missing, old or torn.
// All writes that were acknowledged before must exist.
func TestAPowerCutLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	if !*faults {
		t.Skip("runs with -faults")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var calls []*diskCall
	var l *load
	for _, writes := range []int64{200, 800} { // into a new database, and until the log is folded into it under load
		trace := filepath.Join(t.TempDir(), "trace")
		p := spawn(t, traced(t, userdCommand(t, dir, loadEnviron), trace))
		p.awaitServing()
		if l == nil {
			l = newLoad(p)
		}
		if status, _ := l.run(p, writes, syscall.SIGTERM); status != 0 {
			t.Fatalf("exit status %d:\n%s", status, strings.Join(p.log(), "\n"))
		}
		for _, c := range l.clients {
			c.states = c.states[:len(c.requests)+1] // what was not answered was not begun
		}
		next := 0
		if len(calls) > 0 {
			next = calls[len(calls)-1].end + 1
		}
		calls = append(calls, readTrace(t, trace, dir, next)...)
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for n := range 1000 {
		c := calls[r.IntN(len(calls))]
		if n%4 == 0 {
			c = calls[r.IntN(len(calls)/20)] // while the database is made and young
		}
		cut := []int{c.begin, c.end}[r.IntN(2)] + 1 // within the call, and after it
		d, answered := diskAt(calls, cut)
		after := filepath.Join(dir, "after")
		if err := os.Mkdir(after, 0o700); err != nil {
			t.Fatal(err)
		}
		d.leave(t, r, after)
		path := filepath.Join(after, "app.db")
		_, err := inspect(context.Background(), path)
		var st *store
		if err == nil {
			st, err = openStore(context.Background(), path)
		}
		if err == nil {
			l.check(path, func(request string) bool { return answered[request] })
			err = st.close()
		}
		if err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Fatalf("cut %d, at line %d of the trace, seed %d", n, cut, seed)
		}
		if err := os.RemoveAll(after); err != nil {
			t.Fatal(err)
		}
	}
}
