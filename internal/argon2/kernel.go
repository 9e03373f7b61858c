//go:build amd64 && !purego

package argon2

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/blake2b"
)

const (
	variant  = 2 // argon2id, the type y in RFC 9106
	segments = 4 // of the lane, SL in RFC 9106

	blockWords = 128
	blockSize  = 8 * blockWords // bytes
)

// A block has eight rows of 16 words. This architecture has the byte order of the RFC.
type block [blockWords]uint64

func (b *block) bytes() *[blockSize]byte { return (*[blockSize]byte)(unsafe.Pointer(b)) }

// compress sets dst to G(a, b), section 3.5. dst may be a or b. It overwrites scratch.
//
//go:noescape
func compress(dst, a, b, scratch *block)

// compressXOR sets dst to G(a, b) XOR dst. It overwrites scratch.
//
//go:noescape
func compressXOR(dst, a, b, scratch *block)

// hasAVX2 reports whether the CPU and the operating system support AVX2.
func hasAVX2() bool

// Check computes a known key with the kernel, in less than a millisecond, and returns an
// error if the key is wrong. It returns nil if this build or CPU does not use the kernel.
func Check() error {
	mem := NewMemory()
	if mem == nil {
		return nil
	}
	defer mem.Release()
	// A vector of the reference implementation.
	const want = "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"
	got := hex.EncodeToString(mem.key([]byte("password"), []byte("somesalt"), 2, 256, 32))
	if got != want {
		return fmt.Errorf("argon2: the kernel computed the key %s instead of %s", got, want)
	}
	return nil
}

// key is Key with the kernel. The steps are those of section 3.2.
func (m *Memory) key(password, salt []byte, time, memory, keyLen uint32) []byte {
	h0 := initialHash(password, salt, time, memory, keyLen) // step 1
	count := max(memory, 2*segments) / segments * segments  // step 2
	all := m.hold(int(count) + workBlocks)
	f := filler{blocks: all[:count], work: (*[workBlocks]block)(all[count:]), passes: time}
	for i := range uint32(2) { // steps 3 and 4
		first := binary.LittleEndian.AppendUint32(h0[:], i)
		first = binary.LittleEndian.AppendUint32(first, 0) // the lane
		variableHash(f.blocks[i].bytes()[:], first)
	}
	for pass := range time { // steps 5 and 6
		for segment := range uint32(segments) {
			f.fill(pass, segment)
			runtime.Gosched() // a hash must not keep short requests waiting until it ends
		}
	}
	key := make([]byte, keyLen)
	variableHash(key, f.blocks[count-1].bytes()[:]) // steps 7 and 8, for one lane
	return key
}

// initialHash returns H_0: section 3.2 step 1.
func initialHash(password, salt []byte, time, memory, keyLen uint32) [blake2b.Size]byte {
	var input []byte
	for _, n := range []uint32{1, keyLen, memory, time, argon2.Version, variant} { // one lane
		input = binary.LittleEndian.AppendUint32(input, n)
	}
	for _, text := range [][]byte{password, salt, nil, nil} { // no secret, no associated data
		input = binary.LittleEndian.AppendUint32(input, uint32(len(text)))
		input = append(input, text...)
	}
	return blake2b.Sum512(input)
}

// variableHash sets out to H'(input): section 3.3.
func variableHash(out, input []byte) {
	var v [blake2b.Size]byte
	input = append(binary.LittleEndian.AppendUint32(nil, uint32(len(out))), input...)
	for len(out) > blake2b.Size {
		v = blake2b.Sum512(input)
		copy(out, v[:32])
		out, input = out[32:], v[:]
	}
	last, _ := blake2b.New(len(out), nil) // its errors are for sizes that out does not have
	last.Write(input)
	last.Sum(out[:0])
}

// A filler fills the blocks of a hash.
type filler struct {
	blocks []block
	work   *[workBlocks]block
	passes uint32
}

// The blocks that a hash needs for its work.
const (
	scratch    = iota // of compress
	zero              // all zeros
	input             // of the next addresses
	addresses         // J_1 and J_2 of the next 128 blocks
	workBlocks        // their number
)

// fill fills a segment of the blocks in a pass: section 3.2 steps 5 and 6.
func (f *filler) fill(pass, segment uint32) {
	count := uint32(len(f.blocks))
	size := count / segments
	byPosition := pass == 0 && segment < segments/2 // section 3.4.1.3
	if byPosition {
		f.work[zero] = block{}
		f.work[input] = block{uint64(pass), 0, uint64(segment), uint64(count), uint64(f.passes), variant} // 0 is the lane
	}
	start := uint32(0)
	if pass == 0 && segment == 0 {
		start = 2 // steps 3 and 4 have made the first two
		f.nextAddresses()
	}
	for i := start; i < size; i++ {
		if byPosition && i%blockWords == 0 {
			f.nextAddresses()
		}
		current := segment*size + i
		previous := &f.blocks[before(current, count)]
		random := previous[0]
		if byPosition {
			random = f.work[addresses][i%blockWords]
		}
		other := &f.blocks[reference(uint32(random), pass, segment, i, size)]
		if pass == 0 {
			compress(&f.blocks[current], previous, other, &f.work[scratch])
		} else {
			compressXOR(&f.blocks[current], previous, other, &f.work[scratch])
		}
	}
}

// nextAddresses makes the next 128 addresses: section 3.4.1.2.
func (f *filler) nextAddresses() {
	w := f.work
	w[input][6]++ // the counter
	compress(&w[addresses], &w[zero], &w[input], &w[scratch])
	compress(&w[addresses], &w[zero], &w[addresses], &w[scratch])
}

// before returns the index of the block before block i of count blocks. The last block
// comes before the first.
func before(i, count uint32) uint32 {
	if i == 0 {
		return count - 1
	}
	return i - 1
}

// reference returns the index of the block that J_1 selects for block i of a segment of
// size blocks: section 3.4.2. With one lane, J_2 selects nothing.
func reference(j1, pass, segment, i, size uint32) uint32 {
	// The set W: what was filled last, without the previous block. In the first pass that
	// is everything before it, later the three other segments and the start of this one.
	w, first := segment*size+i-1, uint32(0)
	if pass > 0 {
		w, first = (segments-1)*size+i-1, (segment+1)%segments*size
	}
	x := uint64(j1) * uint64(j1) >> 32
	y := uint64(w) * x >> 32
	z := uint64(w) - 1 - y
	return uint32((uint64(first) + z) % uint64(segments*size))
}
