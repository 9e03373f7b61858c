package qr

// masks are the conditions of section 7.8.2: a module of the text in column x and row y
// changes its color if the condition of the code's mask is true.
var masks = [...]func(x, y int) bool{
	func(x, y int) bool { return (x+y)%2 == 0 },
	func(x, y int) bool { return y%2 == 0 },
	func(x, y int) bool { return x%3 == 0 },
	func(x, y int) bool { return (x+y)%3 == 0 },
	func(x, y int) bool { return (x/3+y/2)%2 == 0 },
	func(x, y int) bool { return x*y%2+x*y%3 == 0 },
	func(x, y int) bool { return (x*y%2+x*y%3)%2 == 0 },
	func(x, y int) bool { return ((x+y)%2+x*y%3)%2 == 0 },
}

// draw returns the code of a version and a mask that holds the codewords.
func draw(codewords []byte, number, mask int) *Code {
	size := 17 + 4*number
	c := &Code{size: size, dark: make([]bool, size*size), fixed: make([]bool, size*size)}
	c.drawPatterns(versions[number].alignment)
	c.drawFormat(mask)
	if number >= 7 {
		c.drawVersion(number)
	}
	c.drawText(codewords, masks[mask])
	return c
}

// fix sets a module that does not depend on the text. It ignores modules outside the code.
func (c *Code) fix(x, y int, dark bool) {
	if x >= 0 && y >= 0 && x < c.size && y < c.size {
		c.dark[y*c.size+x], c.fixed[y*c.size+x] = dark, true
	}
}

// drawPatterns draws what a scanner searches for (section 6.3): the timing patterns, the
// finder patterns in three corners with their separators, and the alignment patterns.
func (c *Code) drawPatterns(alignment []int) {
	for i := range c.size {
		c.fix(6, i, i%2 == 0)
		c.fix(i, 6, i%2 == 0)
	}
	end := c.size - 4
	c.drawRings(3, 3, 4)
	c.drawRings(end, 3, 4)
	c.drawRings(3, end, 4)
	for i, x := range alignment {
		for j, y := range alignment {
			last := len(alignment) - 1
			if i == 0 && j == 0 || i == 0 && j == last || i == last && j == 0 {
				continue // a finder pattern is there
			}
			c.drawRings(x, y, 2)
		}
	}
}

// drawRings draws a square of rings. From the outside, a finder pattern (radius 4) has a
// light, a dark and a light ring, and a center of 3 by 3 dark modules. An alignment
// pattern (radius 2) has a dark and a light ring, and a center of one dark module.
func (c *Code) drawRings(x, y, radius int) {
	for dx := -radius; dx <= radius; dx++ {
		for dy := -radius; dy <= radius; dy++ {
			ring := max(dx, -dx, dy, -dy)
			c.fix(x+dx, y+dy, ring != 4 && ring != radius/2)
		}
	}
}

// withRemainder appends n bits to a value of at most 6 bits: the remainder of its
// division by a polynomial of degree n, which corrects errors (annexes C and D).
func withRemainder(value, polynomial, n int) int {
	remainder := value << n
	for i := 5; i >= 0; i-- {
		if remainder>>(i+n)&1 > 0 {
			remainder ^= polynomial << i
		}
	}
	return value<<n | remainder
}

// drawFormat draws the level of error correction and the mask, twice (section 7.9).
func (c *Code) drawFormat(mask int) {
	const levelL = 0b01
	bits := withRemainder(levelL<<3|mask, 0b10100110111, 10) ^ 0b101010000010010
	for i := range 15 {
		dark := bits>>i&1 > 0
		switch { // from the top down, and to the left; both skip the timing pattern
		case i < 6:
			c.fix(8, i, dark)
		case i < 8:
			c.fix(8, i+1, dark)
		case i == 8:
			c.fix(7, 8, dark)
		default:
			c.fix(14-i, 8, dark)
		}
		if i < 8 {
			c.fix(c.size-1-i, 8, dark)
		} else {
			c.fix(8, c.size-15+i, dark)
		}
	}
	c.fix(8, c.size-8, true)
}

// drawVersion draws the number of the version, twice (section 7.10).
func (c *Code) drawVersion(number int) {
	bits := withRemainder(number, 0b1111100100101, 12)
	for i := range 18 {
		dark := bits>>i&1 > 0
		c.fix(i/3, c.size-11+i%3, dark)
		c.fix(c.size-11+i%3, i/3, dark)
	}
}

// drawText draws the bits of the codewords from the lower right corner, in columns of
// two modules, alternately up and down (section 7.7.3), and applies the mask.
func (c *Code) drawText(codewords []byte, mask func(x, y int) bool) {
	bit, up := 0, true
	for right := c.size - 1; right > 0; right -= 2 {
		if right == 6 { // the timing pattern
			right--
		}
		for i := range c.size {
			y := i
			if up {
				y = c.size - 1 - i
			}
			for _, x := range [2]int{right, right - 1} {
				if c.fixed[y*c.size+x] {
					continue
				}
				// Up to 7 modules are left over at the end.
				dark := bit < 8*len(codewords) && codewords[bit/8]<<(bit%8)&0x80 > 0
				c.dark[y*c.size+x] = dark != mask(x, y)
				bit++
			}
		}
		up = !up
	}
}

// penalty counts what makes a code hard to read (section 7.8.3).
func (c *Code) penalty() int {
	sum, dark := 0, 0
	for i := range c.size {
		sum += linePenalty(c.size, func(j int) bool { return c.Dark(j, i) })
		sum += linePenalty(c.size, func(j int) bool { return c.Dark(i, j) })
		for j := range c.size {
			d := c.Dark(i, j)
			if d {
				dark++
			}
			// Squares of 2 by 2 modules.
			if i > 0 && j > 0 && c.Dark(i-1, j) == d && c.Dark(i, j-1) == d && c.Dark(i-1, j-1) == d {
				sum += 3
			}
		}
	}
	// Each whole 5 % that the dark modules differ from one half.
	all := c.size * c.size
	return sum + 10*(max(2*dark-all, all-2*dark)*10/all)
}

// linePenalty is the part of the penalty that one row or column has.
func linePenalty(size int, dark func(int) bool) int {
	runs := []int{0} // the lengths of light and dark runs, in turn, beginning with light
	for i := range size {
		if dark(i) != (len(runs)%2 == 0) {
			runs = append(runs, 0)
		}
		runs[len(runs)-1]++
	}
	sum := 0
	for _, n := range runs {
		if n >= 5 {
			sum += 3 + n - 5
		}
	}
	// The proportions of a finder pattern, in any size, with enough light on one side.
	// The quiet zone is light.
	if len(runs)%2 == 0 {
		runs = append(runs, 0)
	}
	runs[0] += size
	runs[len(runs)-1] += size
	for i := 3; i+3 < len(runs); i += 2 {
		n := runs[i-2]
		if runs[i-1] == n && runs[i] == 3*n && runs[i+1] == n && runs[i+2] == n && max(runs[i-3], runs[i+3]) >= 4*n {
			sum += 40
		}
	}
	return sum
}
