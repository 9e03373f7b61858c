// Package qr draws QR codes (ISO/IEC 18004) of up to 520 bytes, for screens.
//
// It knows one mode, bytes, and one level of error correction, L: 7 % of a code can be
// unreadable. A higher level helps if a code is printed and gets dirty. On a screen it
// only makes the code larger: an address of up to 106 bytes, as authenticator apps
// read it, has 23 lines in a terminal of 24, but 25 lines with level M.
//
// [Encode] chooses the smallest version and the best of the eight masks. [Code.Print]
// draws in a terminal; [Code.Dark] is for other pictures.
package qr

import "errors"

// MaxLen is the length of the longest text that fits into a code, in bytes.
const MaxLen = 520

// QuietZone is the width of the light border that a code needs, in modules.
const QuietZone = 4

// ErrTooLong is the error of [Encode] for a text of more than [MaxLen] bytes.
var ErrTooLong = errors.New("the text is too long for a QR code")

// A Code is a square of dark and light modules.
type Code struct {
	size  int
	dark  []bool // row by row
	fixed []bool // the module does not depend on the text or the mask
}

// A version is a size of codes with level L (tables 1, 9 and E.1 of the standard).
type version struct {
	codewords  int   // in all blocks, those of error correction included
	blocks     int   // parts of the text that are corrected separately
	correction int   // codewords for error correction in each block
	alignment  []int // coordinates of the centers of the alignment patterns
}

var versions = [...]version{
	1:  {26, 1, 7, nil},
	2:  {44, 1, 10, []int{6, 18}},
	3:  {70, 1, 15, []int{6, 22}},
	4:  {100, 1, 20, []int{6, 26}},
	5:  {134, 1, 26, []int{6, 30}},
	6:  {172, 2, 18, []int{6, 34}},
	7:  {196, 2, 20, []int{6, 22, 38}},
	8:  {242, 2, 24, []int{6, 24, 42}},
	9:  {292, 2, 30, []int{6, 26, 46}},
	10: {346, 4, 18, []int{6, 28, 50}},
	11: {404, 4, 20, []int{6, 30, 54}},
	12: {466, 4, 24, []int{6, 32, 58}},
	13: {532, 4, 26, []int{6, 34, 62}},
	14: {581, 4, 30, []int{6, 26, 46, 66}},
	15: {655, 6, 22, []int{6, 26, 48, 70}},
}

// Encode returns the smallest code that holds a text, in any encoding; apps expect UTF-8
// or ASCII. The same text has the same code. Its only error is [ErrTooLong].
func Encode(text string) (*Code, error) {
	for number := 1; number < len(versions); number++ {
		codewords, ok := encode(text, number)
		if !ok {
			continue
		}
		var best *Code
		for mask := range masks {
			if c := draw(codewords, number, mask); best == nil || c.penalty() < best.penalty() {
				best = c
			}
		}
		return best, nil
	}
	return nil, ErrTooLong
}

// Size returns the number of modules in a row, without the quiet zone.
func (c *Code) Size() int { return c.size }

// Dark reports whether the module in column x and row y is dark. Both count from 0. All
// modules outside the code are light.
func (c *Code) Dark(x, y int) bool {
	return x >= 0 && y >= 0 && x < c.size && y < c.size && c.dark[y*c.size+x]
}

// encode returns the codewords of a text, in the order in which a code of this version
// holds them. It is not ok if the version has too little room.
func encode(text string, number int) (codewords []byte, ok bool) {
	v := versions[number]
	room := v.codewords - v.blocks*v.correction
	length := []byte{byte(len(text))}
	if number >= 10 {
		length = []byte{byte(len(text) >> 8), byte(len(text))}
	}
	if len(length)+len(text)+1 > room {
		return nil, false
	}
	// Four bits for the mode, the length, the text and four bits for its end.
	last := byte(0b0100)
	data := make([]byte, 0, room)
	for _, b := range append(length, text...) {
		data = append(data, last<<4|b>>4)
		last = b
	}
	data = append(data, last<<4)
	for pad := byte(0xEC); len(data) < room; pad ^= 0xEC ^ 0x11 {
		data = append(data, pad)
	}

	// The last blocks have one byte more if the blocks cannot be equal.
	var texts, corrections [][]byte
	for i := range v.blocks {
		n := (room + i) / v.blocks
		texts = append(texts, data[:n])
		corrections = append(corrections, correct(data[:n], v.correction))
		data = data[n:]
	}
	return append(interleave(texts), interleave(corrections)...), true
}

// interleave returns the first byte of each block, then the second of each, and so on.
func interleave(blocks [][]byte) []byte {
	var all []byte
	for i := range blocks[len(blocks)-1] { // the last block is the longest
		for _, block := range blocks {
			if i < len(block) {
				all = append(all, block[i])
			}
		}
	}
	return all
}

// correct returns the n codewords of the Reed-Solomon code for data: the remainder of
// the division by (x - 1)(x - 2)(x - 4)…, whose zeros are the first n powers of 2.
func correct(data []byte, n int) []byte {
	divisor := make([]byte, n) // without the coefficient of x^n, which is 1
	divisor[n-1] = 1
	zero := byte(1)
	for range n {
		for i := range divisor {
			divisor[i] = multiply(divisor[i], zero)
			if i+1 < n {
				divisor[i] ^= divisor[i+1]
			}
		}
		zero = multiply(zero, 2)
	}
	remainder := make([]byte, n)
	for _, b := range data {
		factor := b ^ remainder[0]
		remainder = append(remainder[1:], 0)
		for i, d := range divisor {
			remainder[i] ^= multiply(d, factor)
		}
	}
	return remainder
}

// multiply multiplies in the field of 256 elements with the polynomial 0x11D.
func multiply(a, b byte) byte {
	var product byte
	for ; b > 0; b >>= 1 {
		if b&1 > 0 {
			product ^= a
		}
		if a >= 0x80 {
			a = a<<1 ^ 0x1D
		} else {
			a <<= 1
		}
	}
	return product
}
