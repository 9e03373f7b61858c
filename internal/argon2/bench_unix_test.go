//go:build unix

package argon2

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"
)

// cpuTime returns the CPU time of the process so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkKernel compares the CPU time of the kernel and of x/crypto at the cost of
// passhash. The two take turns, so that the other work of the machine slows both of
// them. The result is the median of 12 ratios; each round has b.N hashes of each.
func BenchmarkKernel(b *testing.B) {
	mem := NewMemory()
	defer mem.Release()
	password, salt := []byte("correct horse battery"), make([]byte, 16)
	measure := func(key func()) time.Duration {
		start := cpuTime(b)
		for range b.N {
			key()
		}
		return cpuTime(b) - start
	}
	kernel := func() { Key(mem, password, salt, 2, 19456, 32) }
	reference := func() { argon2.IDKey(password, salt, 2, 19456, 1, 32) }
	kernel() // maps the memory
	const rounds = 12
	var ratios, kernels, references []float64
	for range rounds {
		k, r := measure(kernel), measure(reference)
		ratios = append(ratios, k.Seconds()/r.Seconds())
		kernels = append(kernels, k.Seconds()*1000/float64(b.N))
		references = append(references, r.Seconds()*1000/float64(b.N))
	}
	median := func(list []float64) float64 {
		slices.Sort(list)
		return (list[rounds/2-1] + list[rounds/2]) / 2
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ratios), "×x/crypto")
	b.ReportMetric(median(kernels), "kernel-ms")
	b.ReportMetric(median(references), "x/crypto-ms")
}
