package otp

import (
	"bytes"
	"encoding/base32"
	"flag"
	"fmt"
	"math"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"
)

var peers = flag.Bool("peers", false, "test with oathtool of Debian, which must be installed")

var rfcSecret = []byte("12345678901234567890")

// RFC 4226 appendix D.
func TestCodeHasTheVectorsOfRFC4226(t *testing.T) {
	t.Parallel()
	for step, want := range []string{"755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"} {
		if got := Code(rfcSecret, int64(step)); got != want {
			t.Errorf("Code(%d) = %s, want %s", step, got, want)
		}
	}
}

// RFC 6238 appendix B, SHA-1. It has 8 digits, of which 6-digit codes are the last.
func TestMatchHasTheVectorsOfRFC6238(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		seconds, step int64
		code          string
	}{
		{59, 0x1, "94287082"},
		{1111111109, 0x23523EC, "07081804"},
		{1111111111, 0x23523ED, "14050471"},
		{1234567890, 0x273EF07, "89005924"},
		{2000000000, 0x3F940AA, "69279037"},
		{20000000000, 0x27BC86AA, "65353130"},
	} {
		now := time.Unix(v.seconds, 0)
		if got := Step(now); got != v.step {
			t.Errorf("the step at %d is %#x, want %#x", v.seconds, got, v.step)
		}
		if step, ok, reused := Match(rfcSecret, v.code[2:], now, 0); step != v.step || !ok || reused {
			t.Errorf("Match at %d: %#x, %v, %v", v.seconds, step, ok, reused)
		}
		if _, ok, reused := Match(rfcSecret, v.code, now, 0); ok || reused {
			t.Errorf("Match accepts 8 digits at %d", v.seconds)
		}
	}
}

func TestStepRoundsDown(t *testing.T) {
	t.Parallel()
	for _, v := range []struct{ seconds, nanoseconds, want int64 }{
		{-61, 0, -3}, {-60, 0, -2}, {-31, 0, -2}, {-30, 0, -1}, {-1, 0, -1},
		{0, -1, -1}, {0, 0, 0}, {29, 999_999_999, 0}, {30, -1, 0}, {30, 0, 1},
		{math.MaxInt64, 0, math.MaxInt64 / 30}, {math.MinInt64, 0, math.MinInt64/30 - 1},
	} {
		if got := Step(time.Unix(v.seconds, v.nanoseconds)); got != v.want {
			t.Errorf("the step at %d s and %d ns is %d, want %d", v.seconds, v.nanoseconds, got, v.want)
		}
	}
}

func TestMatchAcceptsEachStepOnce(t *testing.T) {
	t.Parallel()
	now := time.Unix(1234567890, 0)
	current := Step(now)
	for _, c := range []struct {
		name           string
		step, lastStep int64
		ok, reused     bool
	}{
		{"two steps before", -2, -9, false, false},
		{"one step before", -1, -9, true, false},
		{"the current step", 0, -9, true, false},
		{"one step after", 1, -9, true, false},
		{"two steps after", 2, -9, false, false},
		{"the step before, which was used", -1, -1, false, true},
		{"the current step, which was used", 0, 0, false, true},
		{"the step after, which was used", 1, 1, false, true},
		{"the step before one that was used", -1, 0, false, true},
		{"the current step before one that was used", 0, 1, false, true},
		{"the current step after one that was used", 0, -1, true, false},
		{"the step after one that was used", 1, 0, true, false},
		{"too old and used", -2, -2, false, false},
		{"too new and used", 2, 2, false, false},
		{"the clock was set back by an hour", 0, 120, false, true},
		{"the clock was set back by centuries", 0, math.MaxInt64 - current, false, true},
	} {
		step, ok, reused := Match(rfcSecret, Code(rfcSecret, current+c.step), now, current+c.lastStep)
		if ok != c.ok || reused != c.reused {
			t.Errorf("%s: ok %v, reused %v; want %v, %v", c.name, ok, reused, c.ok, c.reused)
		}
		if (ok || reused) && step != current+c.step || !ok && !reused && step != 0 {
			t.Errorf("%s: step %d, want %d", c.name, step, current+c.step)
		}
	}
}

// The codes of these two steps are equal by chance.
func TestACodeOfTwoStepsWorksOnce(t *testing.T) {
	t.Parallel()
	const first, second = 56188870, 56188871
	code := Code(rfcSecret, first)
	if other := Code(rfcSecret, second); other != code {
		t.Fatalf("the codes are %s and %s", code, other)
	}
	now := time.Unix(second*period, 0)
	for _, c := range []struct {
		lastStep   int64
		ok, reused bool
	}{{first - 1, true, false}, {first, false, true}, {second, false, true}} {
		if step, ok, reused := Match(rfcSecret, code, now, c.lastStep); step != second || ok != c.ok || reused != c.reused {
			t.Errorf("last step %d: step %d, ok %v, reused %v", c.lastStep, step, ok, reused)
		}
	}
}

func TestMatchRefusesOtherTexts(t *testing.T) {
	t.Parallel()
	now := time.Unix(59, 0)
	for _, code := range []string{"", "287083", "28708", "0287082", "287082 ", "287 082", "٢٨٧٠٨٢", strings.Repeat("287082", 1000)} {
		if _, ok, reused := Match(rfcSecret, code, now, 0); ok || reused {
			t.Errorf("Match accepts %.20q", code)
		}
	}
}

func TestNoCodeIsRightBefore1970(t *testing.T) {
	t.Parallel()
	for _, step := range []int64{math.MinInt64 / 30, -9, -2, -1} {
		now := time.Unix(step*period, 0)
		if _, ok, reused := Match(rfcSecret, Code(rfcSecret, step), now, math.MinInt64); ok || reused {
			t.Errorf("Match accepts the code of step %d", step)
		}
	}
	// The window around the first second of 1970 has a step before it.
	if step, ok, _ := Match(rfcSecret, Code(rfcSecret, 0), time.Unix(-1, 0), -1); step != 0 || !ok {
		t.Error("Match refuses the first code of 1970, one second before")
	}
}

func TestNewSecretsAreRandom(t *testing.T) {
	t.Parallel()
	a, b := NewSecret(), NewSecret()
	if len(a) != 20 || len(b) != 20 || bytes.Equal(a, b) || bytes.Equal(a, make([]byte, 20)) {
		t.Errorf("NewSecret returned %x and %x", a, b)
	}
}

func TestParseSecret(t *testing.T) {
	t.Parallel()
	const text = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
	if got := EncodeSecret(rfcSecret); got != text {
		t.Errorf("EncodeSecret returned %s", got)
	}
	for _, s := range []string{
		text,
		strings.ToLower(text),
		"gezd gnbv gy3t qojq gezd gnbv gy3t qojq",
		" GEZD-GNBV-GY3T-QOJQ-GEZD-GNBV-GY3T-QOJQ\r\n",
		"GEZD\u00a0GNBV\u2011GY3T\u2013QOJQ\tGEZDGNBVGY3TQOJQ",
		text + "======",
	} {
		if secret, err := ParseSecret(s); err != nil || !bytes.Equal(secret, rfcSecret) {
			t.Errorf("ParseSecret(%q) = %x, %v", s, secret, err)
		}
	}
	for n := range 80 {
		want := bytes.Repeat([]byte{0xa5}, n)
		for _, s := range []string{EncodeSecret(want), base32.StdEncoding.EncodeToString(want)} {
			secret, err := ParseSecret(s)
			if (err == nil) != (16 <= n && n <= 64) || err == nil && !bytes.Equal(secret, want) {
				t.Errorf("a secret of %d bytes: %x, %v", n, secret, err)
			}
		}
	}
	for _, s := range []string{
		"", "=", text[:31] + "0", text[:31] + "1", text[:31] + "8", text[:31] + "!",
		text[:8] + "=" + text[8:], text + "A", text + "AAA", text[:31] + "ſ", "otpauth://totp/x?secret=" + text,
	} {
		if secret, err := ParseSecret(s); err == nil {
			t.Errorf("ParseSecret(%q) = %x", s, secret)
		} else if s != "" && s != "=" && strings.Contains(err.Error(), s) {
			t.Errorf("the error repeats the text: %v", err)
		}
	}
}

func TestURI(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ issuer, account, label, parameter string }{
		{"userd", "ann", "userd:ann", "userd"},
		{"Example Inc", "ann@example.com", "Example%20Inc:ann%40example.com", "Example%20Inc"},
		{"A:B", "c:d", "A%3AB:c%3Ad", "A%3AB"},
		{"100% & more?", "a/b#c+d=e", "100%25%20%26%20more%3F:a%2Fb%23c%2Bd%3De", "100%25%20%26%20more%3F"},
		{"Zoë", "-._~", "Zo%C3%AB:-._~", "Zo%C3%AB"},
	} {
		got := URI(c.issuer, c.account, rfcSecret)
		if want := "otpauth://totp/" + c.label + "?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=" + c.parameter; got != want {
			t.Errorf("URI(%q, %q) = %s, want %s", c.issuer, c.account, got, want)
		}
		u, err := url.Parse(got)
		if err != nil {
			t.Errorf("%s: %v", got, err)
			continue
		}
		if u.Scheme != "otpauth" || u.Host != "totp" || u.Path != "/"+c.issuer+":"+c.account || u.Query().Get("issuer") != c.issuer || len(u.Query()) != 2 {
			t.Errorf("%s is parsed as %+v", got, u)
		}
	}
}

func TestOathtoolComputesTheSameCodes(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	t.Parallel()
	now := time.Now()
	for _, size := range []int{16, 20, 64} {
		secret := bytes.Repeat(NewSecret(), 4)[:size]
		for offset := int64(-2); offset <= 2; offset++ {
			at := now.Unix() + offset*period
			out, err := exec.Command("oathtool", "--totp", "--base32", fmt.Sprintf("--now=@%d", at), EncodeSecret(secret)).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			code := strings.TrimSpace(string(out))
			if got := Code(secret, Step(time.Unix(at, 0))); got != code {
				t.Errorf("Code returns %s, oathtool %s", got, code)
			}
			near := -1 <= offset && offset <= 1
			if step, ok, reused := Match(secret, code, now, 0); ok != near || reused || ok && step != Step(now)+offset {
				t.Errorf("Match of the code %d steps away: %d, %v, %v", offset, step, ok, reused)
			}
		}
	}
}

// FuzzParseSecret checks that EncodeSecret returns the normal form of what ParseSecret
// accepts, but for the bits after the last byte, which apps ignore.
func FuzzParseSecret(f *testing.F) {
	f.Add("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")
	f.Add("gezd gnbv-gy3t qojq gezd gnbv gy======")
	f.Add("GEZDGNBVGY3TQOJQGEZDGNBVGA\u2011\xff")
	f.Fuzz(func(t *testing.T, text string) {
		secret, err := ParseSecret(text)
		if err != nil {
			return
		}
		if len(secret) < 16 || len(secret) > 64 {
			t.Errorf("ParseSecret(%q) has %d bytes", text, len(secret))
		}
		normal := EncodeSecret(secret)
		again, err := ParseSecret(normal)
		if err != nil || !bytes.Equal(again, secret) {
			t.Errorf("ParseSecret(%q) = %x, %v, want %x", normal, again, err, secret)
		}
		if got := strings.TrimRight(compact(text), "="); len(got) != len(normal) || got[:len(got)-1] != normal[:len(normal)-1] {
			t.Errorf("%q was parsed as %s", text, normal)
		}
	})
}
