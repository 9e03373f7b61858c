package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"userd/internal/groupcommit/groupcommittest"
	"userd/internal/setting"
	"userd/internal/strictjson"
	"userd/internal/tagged"
)

// testNow is the time at which tests without a service verify tokens.
const testNow = 1_777_863_721

// The header of a token of a key with a kid.
const (
	kidPrefix = `{"alg":"HS256","kid":"`
	kidSuffix = `","typ":"JWT"}`
)

// testKey and testClaims make a token that is valid at testNow. Its header of 44 bytes, its
// signature, and padded texts have trailing bits.
func testKey() *signingKey {
	return newSigningKey("k2345678", []byte("0123456789abcdef0123456789abcdef"))
}

func testClaims() claims {
	return claims{fresh: true, issued: testNow, id: "ID", subject: 1, notBefore: testNow, expires: testNow + 900, session: 1}
}

func encode64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// signInput returns the token that k makes of any signing input.
func signInput(k *signingKey, input string) string {
	return input + "." + base64.RawURLEncoding.EncodeToString(k.mac(input))
}

// headerText returns the JSON of the header that k writes.
func headerText(k *signingKey) string {
	text, err := base64.RawURLEncoding.DecodeString(k.header)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// claimsText returns the JSON of c with another value of one claim. It leaves the claim out
// if value is empty, and adds it if c has none of that name.
func claimsText(c claims, name, value string) string {
	text, found := "", false
	add := func(n, v string) {
		if n == name {
			v, found = value, true
		}
		if v != "" {
			text += fmt.Sprintf(",%q:%s", n, v)
		}
	}
	add("fresh", strconv.FormatBool(c.fresh))
	add("iat", fmt.Sprint(c.issued))
	add("jti", fmt.Sprintf("%q", c.id))
	add("type", `"access"`)
	add("sub", fmt.Sprintf(`"%d"`, c.subject))
	add("nbf", fmt.Sprint(c.notBefore))
	add("exp", fmt.Sprint(c.expires))
	add("sid", fmt.Sprintf(`"%d"`, c.session))
	if !found && value != "" {
		add(name, value)
	}
	return "{" + text[1:] + "}"
}

// spelledOtherwise returns base64 whose last character differs from that of s only in
// unused bits. It panics if the last character has none.
func spelledOtherwise(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	other := s[:len(s)-1] + string(alphabet[strings.IndexByte(alphabet, s[len(s)-1])+1])
	a, erra := base64.RawURLEncoding.DecodeString(s)
	b, errb := base64.RawURLEncoding.DecodeString(other)
	if erra != nil || errb != nil || !bytes.Equal(a, b) {
		panic("not another spelling of " + s)
	}
	return other
}

// A forgery is a token that must be refused, and how.
type forgery struct {
	name  string
	token string
	want  error
}

// forgeries returns tokens made from claims that are valid at now, each with one fault. k
// signs them if the fault allows it, so that the fault is the only reason to refuse them.
func forgeries(k *signingKey, c claims, now int64) []forgery {
	var (
		good    = k.sign(c)
		header  = headerText(k)
		payload = claimsText(c, "", "")

		withHeader  = func(text string) string { return signInput(k, encode64(text)+"."+encode64(payload)) }
		withPayload = func(text string) string { return signInput(k, k.header+"."+encode64(text)) }
		withClaim   = func(name, value string) string { return withPayload(claimsText(c, name, value)) }
		inHeader    = func(old, new string) string { return withHeader(strings.Replace(header, old, new, 1)) }

		unsigned  = good[:strings.LastIndexByte(good, '.')+1]
		signature = good[len(unsigned):]

		// Padded with spaces so that the last quantum has trailing bits and can
		// be left off without harm to the claims.
		roomy = payload + strings.Repeat(" ", 6-(len(payload)+2)%3)
	)
	hmacWith := func(alg string, new func() hash.Hash) string {
		input := encode64(strings.Replace(header, "HS256", alg, 1)) + "." + encode64(payload)
		h := hmac.New(new, k.secret)
		h.Write([]byte(input))
		return input + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
	}

	rows := []forgery{
		{name: "nothing", token: ""},
		{name: "one dot", token: "."},
		{name: "two dots", token: ".."},
		{name: "not a token", token: "token"},
		{name: "one part, signed by the key", token: k.header},
		{name: "two parts, signed by the key", token: signInput(k, k.header)},
		{name: "two parts, the payload left out", token: k.header + "." + signature},
		{name: "an empty payload", token: signInput(k, k.header+".")},
		{name: "an empty header", token: signInput(k, "."+encode64(payload))},
		{name: "an empty signature", token: unsigned},
		{name: "no signature", token: strings.TrimSuffix(unsigned, ".")},
		{name: "four parts, three of them signed", token: signInput(k, k.header+"."+encode64(roomy)+"."+encode64("more"))},
		{name: "four parts, an empty one in the middle", token: signInput(k, k.header+".."+encode64(payload))},
		{name: "four parts, an empty one before the signature", token: signInput(k, k.header+"."+encode64(roomy)+".")},
		{name: "four parts, a whole token and one more", token: good + "." + signature},
		{name: "five parts, as of an encrypted token", token: signInput(k, strings.Join([]string{k.header, encode64("key"), encode64("nonce"), encode64(payload)}, "."))},
		{name: "a no-break space before it", token: "\u00a0" + good},
		{name: "the flattened JSON serialization", token: fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, encode64(payload), k.header, signature)},
		{name: "the general JSON serialization", token: fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, encode64(payload), k.header, signature)},

		{name: "HS384 with the same secret", token: hmacWith("HS384", sha512.New384)},
		{name: "HS512 with the same secret", token: hmacWith("HS512", sha512.New)},
		{name: "HS384 in the header only", token: inHeader("HS256", "HS384")},
		{name: "RS256 in the header, the secret as its key", token: inHeader("HS256", "RS256")},
		{name: "ES256 in the header, the secret as its key", token: inHeader("HS256", "ES256")},
		{name: "hs256", token: inHeader("HS256", "hs256")},
		{name: "an escape in the algorithm", token: inHeader("HS256", `\u0048S256`)},
		{name: "no algorithm", token: inHeader(`"alg":"HS256",`, "")},
		{name: "two algorithms", token: inHeader(`{`, `{"alg":"none",`)},
		{name: "a kid that no key has", token: withHeader(`{"alg":"HS256","kid":"other","typ":"JWT"}`)},
		{name: "a kid that could be ours and that no key has", token: withHeader(kidPrefix + "abcdefgh" + kidSuffix)},
		{name: "an empty kid", token: withHeader(`{"alg":"HS256","kid":"","typ":"JWT"}`)},
		{name: "a kid that is a path", token: withHeader(`{"alg":"HS256","kid":"../../dev/null","typ":"JWT"}`)},
		{name: "a kid that is SQL", token: withHeader(`{"alg":"HS256","kid":"' OR 1=1 --","typ":"JWT"}`)},
		{name: "a key in the header (jwk)", token: inHeader("}", fmt.Sprintf(`,"jwk":{"kty":"oct","k":%q}}`, encode64(string(k.secret))))},
		{name: "the address of a key in the header (jku)", token: inHeader("}", `,"jku":"https://example.com/keys"}`)},
		{name: "the address of a certificate in the header (x5u)", token: inHeader("}", `,"x5u":"https://example.com/cert"}`)},
		{name: "a critical extension", token: inHeader("}", `,"crit":["exp"],"exp":1}`)},
		{name: "an unencoded payload (b64)", token: inHeader("}", `,"b64":false,"crit":["b64"]}`)},
		{name: "no typ", token: inHeader(`,"typ":"JWT"`, "")},
		{name: "another typ", token: inHeader(`"JWT"`, `"at+jwt"`)},
		{name: "header members in another order", token: withHeader(`{"typ":"JWT",` + strings.Replace(header[1:], `,"typ":"JWT"`, "", 1))},
		{name: "a space in the header", token: inHeader(":", ": ")},
		{name: "a header that is not JSON", token: withHeader("HS256")},
		{name: "a header that is not encoded", token: signInput(k, header+"."+encode64(payload))},

		{name: "trailing bits in the header", token: signInput(k, spelledOtherwise(k.header)+"."+encode64(payload))},
		{name: "trailing bits in the payload", token: signInput(k, k.header+"."+spelledOtherwise(encode64(roomy)))},
		{name: "trailing bits in the signature", token: unsigned + spelledOtherwise(signature)},
		{name: "padding after the header", token: signInput(k, base64.URLEncoding.EncodeToString([]byte(header))+"."+encode64(payload))},
		{name: "padding after the payload", token: signInput(k, k.header+"."+base64.URLEncoding.EncodeToString([]byte(roomy)))},
		{name: "padding after the signature", token: good + "="},

		{name: "a changed signature", token: unsigned + changeFirst(signature)},
		{name: "a signature cut short", token: unsigned + signature[:40]},
		{name: "a signature drawn out", token: unsigned + signature + "A"},
		{name: "a signature in hexadecimal", token: unsigned + hex.EncodeToString(k.mac(strings.TrimSuffix(unsigned, ".")))},
		{name: "a signature of only the payload", token: unsigned + base64.RawURLEncoding.EncodeToString(k.mac(encode64(payload)))},
		{name: "a signature by another secret", token: signInput(&signingKey{secret: []byte("another secret of thirty-two bytes")}, k.header+"."+encode64(payload))},
		{name: "a signature by the empty secret", token: signInput(&signingKey{}, k.header+"."+encode64(payload))},
		{name: "a signature that is the secret", token: unsigned + encode64(string(k.secret))},
		{name: "another user under the same signature", token: k.header + "." + encode64(claimsText(c, "sub", `"2"`)) + "." + signature},
		{name: "a longer life under the same signature", token: k.header + "." + encode64(claimsText(c, "exp", "9999999999")) + "." + signature},
		{name: "an expired token under a wrong signature", token: k.header + "." + encode64(claimsText(c, "exp", fmt.Sprint(now-1))) + "." + signature},

		{name: "a token longer than any is", token: withPayload(pad(payload, maxToken+1, func(text string) int { return len(withPayload(text)) }))},
		{name: "a payload that is an array", token: withPayload("[" + payload + "]")},
		{name: "a payload that is a string", token: withPayload(strconv.Quote(payload))},
		{name: "a payload that is null", token: withPayload("null")},
		{name: "a payload that is not JSON", token: withPayload("claims")},
		{name: "no claims", token: withPayload("{}")},
		{name: "data after the payload", token: withPayload(payload + "1")},
		{name: "a second payload", token: withPayload(payload + payload)},
		{name: "a NUL after the payload", token: withPayload(payload + "\x00")},
		{name: "a byte order mark before the payload", token: withPayload("\ufeff" + payload)},
		{name: "invalid UTF-8 in the jti", token: withClaim("jti", "\"\xff\"")},
		{name: "invalid UTF-8 in a claim that is not read", token: withClaim("more", "\"\xff\"")},
		{name: "more claims than a token needs", token: withPayload(strings.Replace(payload, "}", manyMembers(strictjson.MaxMembers-7)+"}", 1))},

		{name: "a subject that appears twice", token: withPayload(strings.Replace(payload, "{", `{"sub":"2",`, 1))},
		{name: "a subject that appears twice, once with an escape", token: withPayload(strings.Replace(payload, "{", `{"\u0073ub":"2",`, 1))},
		{name: "an exp that appears twice", token: withPayload(strings.Replace(payload, "}", `,"exp":9999999999}`, 1))},
		{name: "an unread claim that appears twice", token: withPayload(strings.Replace(payload, "}", `,"more":1,"more":1}`, 1))},
		{name: "a subject in another case", token: withPayload(strings.Replace(payload, `"sub"`, `"SUB"`, 1))},

		{name: "type refresh", token: withClaim("type", `"refresh"`)},
		{name: "type in another case", token: withClaim("type", `"Access"`)},
		{name: "type with an escape", token: withClaim("type", `"\u0061ccess"`)},
		{name: "an empty type", token: withClaim("type", `""`)},
		{name: "type as a word in an array", token: withClaim("type", `["access"]`)},
		{name: "an empty jti", token: withClaim("jti", `""`)},
		{name: "a jti that is a number", token: withClaim("jti", "12345")},
		{name: "a jti with an escape", token: withClaim("jti", `"\u0041"`)},
		{name: "fresh as a number", token: withClaim("fresh", "1")},
		{name: "fresh as a string", token: withClaim("fresh", `"true"`)},
		{name: "fresh as null", token: withClaim("fresh", "null")},

		{name: "an iat of 24 hours ago", token: withClaim("iat", fmt.Sprint(now-24*60*60)), want: errExpiredToken},
		{name: "an exp of long ago", token: withClaim("exp", "1"), want: errExpiredToken},
		{name: "an exp of a second ago", token: withClaim("exp", fmt.Sprint(now-1)), want: errExpiredToken},
		{name: "an exp of now", token: withClaim("exp", fmt.Sprint(now)), want: errExpiredToken},
		{name: "an nbf in 61 seconds", token: withClaim("nbf", fmt.Sprint(now+61)), want: errExpiredToken},
		{name: "an nbf of after the exp", token: withClaim("nbf", fmt.Sprint(c.expires+1)), want: errExpiredToken},
		{name: "an iat in 61 seconds", token: withClaim("iat", fmt.Sprint(now+61)), want: errExpiredToken},
	}
	for _, alg := range []string{"none", "None", "NONE", "nOnE", ""} {
		input := encode64(strings.Replace(header, "HS256", alg, 1)) + "." + encode64(payload)
		bare := encode64(fmt.Sprintf(`{"alg":%q}`, alg)) + "." + encode64(payload)
		rows = append(rows,
			forgery{name: fmt.Sprintf("algorithm %q without a signature", alg), token: input + "."},
			forgery{name: fmt.Sprintf("algorithm %q with a signature by the key", alg), token: signInput(k, input)},
			forgery{name: fmt.Sprintf("algorithm %q only, without a signature", alg), token: bare + "."},
			forgery{name: fmt.Sprintf("algorithm %q only, with a signature by the key", alg), token: signInput(k, bare)},
		)
	}
	for _, lineBreak := range []string{"\r", "\n", "\r\n"} {
		const at = 8 // within any part
		rows = append(rows,
			forgery{name: fmt.Sprintf("%q in the header", lineBreak), token: signInput(k, k.header[:at]+lineBreak+k.header[at:]+"."+encode64(payload))},
			forgery{name: fmt.Sprintf("%q in the payload", lineBreak), token: signInput(k, k.header+"."+encode64(payload)[:at]+lineBreak+encode64(payload)[at:])},
			forgery{name: fmt.Sprintf("%q in the signature", lineBreak), token: unsigned + signature[:at] + lineBreak + signature[at:]},
			forgery{name: fmt.Sprintf("%q at the end", lineBreak), token: good + lineBreak},
		)
	}
	for _, name := range []string{"fresh", "iat", "jti", "type", "sub", "nbf", "exp", "sid"} {
		rows = append(rows, forgery{name: "no " + name, token: withClaim(name, "")})
	}
	for _, name := range []string{"iat", "nbf", "exp"} {
		far := "9999999999"
		if name != "exp" {
			far = "1" // all but its form must be right
		}
		for kind, value := range map[string]string{
			"null":                   "null",
			"true":                   "true",
			"a float":                far + ".0",
			"a number with exponent": far + "e0",
			"a string":               `"` + far + `"`,
			"an array":               "[" + far + "]",
			"an object":              "{}",
			"negative":               "-" + far,
			"zero":                   "0",
			"minus zero":             "-0",
			"one more than 64 bits":  "9223372036854775808",
			"of two hundred digits":  strings.Repeat("9", 200),
		} {
			rows = append(rows, forgery{name: name + " as " + kind, token: withClaim(name, value)})
		}
	}
	for _, name := range []string{"sub", "sid"} {
		for _, value := range []string{`"01"`, `"+1"`, `" 1"`, `"1 "`, `"1.0"`, `"1e0"`, `"0x1"`, `"1_0"`, `"1,0"`, `""`, `"0"`, `"-1"`, `"-0"`, `"me"`,
			`"\u0031"`, `"1\u0000"`, `"１"`, `"18446744073709551617"`, `1`, `10000001`, `1.0`, `true`, `null`, `["1"]`, `{"1":1}`} {
			rows = append(rows, forgery{name: name + " as " + value, token: withClaim(name, value)})
		}
	}
	// The part in the wrong alphabet must contain a character in which the alphabets differ.
	standard := strings.NewReplacer("-", "+", "_", "/")
	for i := 0; ; i++ {
		text := claimsText(c, "jti", fmt.Sprintf(`"%s%d"`, strings.Repeat("?>", i%4), i))
		token := withPayload(text)
		last := strings.LastIndexByte(token, '.')
		if strings.ContainsAny(encode64(text), "-_") && strings.ContainsAny(token[last:], "-_") {
			rows = append(rows,
				forgery{name: "a payload in the standard alphabet", token: signInput(k, k.header+"."+standard.Replace(encode64(text)))},
				forgery{name: "a signature in the standard alphabet", token: token[:last] + standard.Replace(token[last:])},
			)
			break
		}
	}
	for i := range rows {
		if rows[i].want == nil {
			rows[i].want = errBadToken
		}
	}
	return rows
}

// changeFirst returns s with another first character.
func changeFirst(s string) string {
	if s[0] == 'A' {
		return "B" + s[1:]
	}
	return "A" + s[1:]
}

// pad returns text followed by spaces, so that its size is at least size.
func pad(text string, size int, sizeOf func(string) int) string {
	for sizeOf(text) < size {
		text += " "
	}
	return text
}

// manyMembers returns n JSON members, each with a comma before it.
func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"m%d":0`, i)
	}
	return b.String()
}

// RFC 7515 appendix A.1.
func TestMACVector(t *testing.T) {
	t.Parallel()
	secret, err := base64.RawURLEncoding.DecodeString("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
	if err != nil {
		t.Fatal(err)
	}
	const (
		input = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9." +
			"eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
		want = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	)
	if got := base64.RawURLEncoding.EncodeToString(newSigningKey("", secret).mac(input)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestSignThenVerify(t *testing.T) {
	t.Parallel()
	secret := []byte("0123456789abcdef0123456789abcdef")
	for _, row := range []struct {
		name   string
		key    *signingKey
		claims claims
		header string
		text   string
	}{
		{
			name:   "a key of the configuration writes the header that PyJWT writes",
			key:    newSigningKey("", secret),
			claims: testClaims(),
			header: `{"alg":"HS256","typ":"JWT"}`,
			text:   `{"fresh":true,"iat":1777863721,"jti":"ID","type":"access","sub":"1","nbf":1777863721,"exp":1777864621,"sid":"1"}`,
		},
		{
			name:   "a key of the database names itself, a refreshed token is not fresh",
			key:    newSigningKey("abc", secret),
			claims: claims{issued: 1, id: "X", subject: math.MaxInt64, notBefore: 1, expires: math.MaxInt64, session: math.MaxInt64},
			header: `{"alg":"HS256","kid":"abc","typ":"JWT"}`,
			text:   `{"fresh":false,"iat":1,"jti":"X","type":"access","sub":"9223372036854775807","nbf":1,"exp":9223372036854775807,"sid":"9223372036854775807"}`,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			token := row.key.sign(row.claims)
			input := encode64(row.header) + "." + encode64(row.text)
			h := hmac.New(sha256.New, secret)
			h.Write([]byte(input))
			if want := input + "." + encode64(string(h.Sum(nil))); token != want {
				t.Errorf("got  %s\nwant %s", token, want)
			}
			if got, err := ringOf(row.key).verify(token, row.claims.issued); err != nil || !sameClaims(got, row.claims) || got.kid != row.key.kid {
				t.Errorf("verified as %+v, %v; want %+v", got, err, row.claims)
			}
		})
	}
}

func TestVerifyAccepts(t *testing.T) {
	t.Parallel()
	k, c := testKey(), testClaims()
	with := func(change func(*claims)) claims {
		c := c
		change(&c)
		return c
	}
	payload := claimsText(c, "", "")
	for _, row := range []struct {
		name    string
		payload string
		want    claims
	}{
		{"claims as userd writes them", payload, c},
		{"claims in another order, between spaces", "\t{ \"sid\" : \"1\" ,\n\"type\":\"access\", \"exp\":1777864621, \"nbf\":1777863721, \"sub\":\"1\", \"jti\":\"ID\", \"iat\":1777863721, \"fresh\":true } ", c},
		{"a claim that userd does not know (RFC 7519 section 4)", claimsText(c, "csrf", `{"sub":["2"],"exp":1}`), c},
		{"a token that is not fresh", claimsText(c, "fresh", "false"), with(func(c *claims) { c.fresh = false })},
		{"an iat in 60 seconds", claimsText(c, "iat", fmt.Sprint(testNow+60)), with(func(c *claims) { c.issued = testNow + 60 })},
		{"an nbf in 60 seconds", claimsText(c, "nbf", fmt.Sprint(testNow+60)), with(func(c *claims) { c.notBefore = testNow + 60 })},
		{"the last second before the exp", claimsText(c, "exp", fmt.Sprint(testNow+1)), with(func(c *claims) { c.expires = testNow + 1 })},
		{"an iat of almost 24 hours ago", claimsText(c, "iat", fmt.Sprint(testNow-24*60*60+1)), with(func(c *claims) { c.issued = testNow - 24*60*60 + 1 })},
		{"the largest exp", claimsText(c, "exp", "9223372036854775807"), with(func(c *claims) { c.expires = math.MaxInt64 })},
		{"as many claims as a token may have", strings.Replace(payload, "}", manyMembers(strictjson.MaxMembers-8)+"}", 1), c},
		{"the longest token", pad(payload, maxToken, func(text string) int { return len(signInput(k, k.header+"."+encode64(text))) }), c},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := ringOf(k).verify(signInput(k, k.header+"."+encode64(row.payload)), testNow)
			if err != nil || !sameClaims(got, row.want) || got.kid != k.kid {
				t.Errorf("got %+v, %v; want %+v", got, err, row.want)
			}
		})
	}
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	keys := ringOf(testKey())
	for _, row := range forgeries(keys.configured[0], testClaims(), testNow) {
		t.Run(row.name, func(t *testing.T) {
			c, err := keys.verify(row.token, testNow)
			if !errors.Is(err, row.want) || answerFor(err) != row.want {
				t.Errorf("got %v, answered %s; want %v", err, answerFor(err).code, row.want)
			}
			if !sameClaims(c, claims{}) && row.want == errBadToken {
				t.Errorf("and yet it says %+v", c)
			}
		})
	}
}

func TestATokenWithTheLongestNamesIsAccepted(t *testing.T) {
	t.Parallel()
	env := map[string]string{
		"JWT_ENCODE_ISSUER":   strings.Repeat("i", setting.MaxNames),
		"JWT_ENCODE_AUDIENCE": strings.Repeat("a,", setting.MaxNames/2), // each name costs quotes too
	}
	var config config
	if err := config.load(nil, func(name string) string { return env[name] }, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	x := session{id: maxID, generation: maxID, userID: maxID}
	k := newSigningKey("abcdefgh", []byte("a secret of at least thirty-two bytes"))
	ring := newKeyring(func(string, int64) ([]byte, error) { return k.secret, nil })
	token := k.sign(config.newClaims(&x, time.Unix(testNow, 0), true))
	if _, err := ring.verify(token, testNow); err != nil {
		t.Errorf("a token of %d bytes: %v", len(token), err)
	}
}

// Otherwise an attacker could sign with the empty key if userd could not read a key.
func TestAKeyThatCannotBeReadVerifiesNothing(t *testing.T) {
	t.Parallel()
	keys := newKeyring(func(string, int64) ([]byte, error) { return nil, errStorage })
	token := newSigningKey("abcdefgh", nil).sign(testClaims())
	if c, err := keys.verify(token, testNow); !errors.Is(err, errStorage) || !sameClaims(c, claims{}) {
		t.Errorf("got %+v, %v; want %v", c, err, errStorage)
	}
}

func TestForgeriesOverHTTP(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	s.do(token, "GET", path, "").want(t, 200, "")
	now := s.clock.wall().Unix()
	c, err := s.keys.verify(token, now)
	if err != nil {
		t.Fatal(err)
	}
	if c.subject != 1 || c.session != 1 {
		t.Fatalf("the forgeries are of user 1 and session 1, not %+v", c)
	}
	for _, row := range forgeries(s.signer(), c, now) {
		if strings.ContainsAny(row.token, "\r\n\x00") {
			continue // no header can hold it
		}
		t.Run(row.name, func(t *testing.T) {
			code := "invalid_token"
			if row.want == errExpiredToken {
				code = "expired_token"
			}
			r := s.do("", "GET", path, "", "Authorization: Bearer "+row.token)
			if r.status != 401 || r.field("code") != code {
				t.Errorf("got %d %s, want 401 %s", r.status, r.body, code)
			}
			if got := r.header.Get("WWW-Authenticate"); got != `Bearer error="invalid_token"` {
				t.Errorf("WWW-Authenticate: %s", got)
			}
		})
	}
	s.do(token, "GET", path, "").want(t, 200, "")
}

func TestAuthorizationHeader(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, token := s.member("ann")
	const (
		none = "Bearer"
		bad  = `Bearer error="invalid_token"`
	)
	for _, row := range []struct {
		name      string
		headers   []string
		status    int
		code      string
		challenge string
	}{
		{"a token", []string{"Bearer " + token}, 200, "", ""},
		{"the scheme in lower case", []string{"bearer " + token}, 200, "", ""},
		{"the scheme in upper case", []string{"BEARER " + token}, 200, "", ""},
		{"spaces between scheme and token", []string{"Bearer   " + token}, 200, "", ""},
		{"no header", nil, 401, "missing_token", none},
		{"an empty header", []string{""}, 401, "missing_token", none},
		{"a token without a scheme", []string{token}, 401, "missing_token", none},
		{"a scheme that only begins with Bearer", []string{"Bearers " + token}, 401, "missing_token", none},
		{"no space after the scheme", []string{"Bearer" + token}, 401, "missing_token", none},
		{"a password (Basic)", []string{"Basic YW5uOmNvcnJlY3QgaG9yc2UgYmF0dGVyeQ=="}, 401, "missing_token", none},
		{"a token under another scheme", []string{"DPoP " + token}, 401, "missing_token", none},
		{"a scheme without a token", []string{"Bearer"}, 401, "invalid_token", bad},
		{"a token and more", []string{"Bearer " + token + " x"}, 401, "invalid_token", bad},
		{"two tokens in one header", []string{"Bearer " + token + ", Bearer " + token}, 401, "invalid_token", bad},
		{"two headers with the same token", []string{"Bearer " + token, "Bearer " + token}, 401, "invalid_token", bad},
		{"two headers, the second of another scheme", []string{"Bearer " + token, "Basic YTpi"}, 401, "invalid_token", bad},
		{"two headers, the first of another scheme", []string{"Basic YTpi", "Bearer " + token}, 401, "invalid_token", bad},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := http.NewRequest("GET", s.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range row.headers {
				r.Header.Add("Authorization", h)
			}
			got := s.ask(r).want(t, row.status, row.code)
			if c := got.header.Get("WWW-Authenticate"); c != row.challenge {
				t.Errorf("WWW-Authenticate: %q, want %q", c, row.challenge)
			}
		})
	}
	t.Run("a token in the query is none", func(t *testing.T) {
		s.do("", "GET", path+"?access_token="+token, "").want(t, 401, "missing_token")
	})
	t.Run("a token in a cookie is none", func(t *testing.T) {
		s.do("", "GET", path, "", "Cookie: access_token_cookie="+token).want(t, 401, "missing_token")
	})
}

func TestTokenOfAnotherUsersSession(t *testing.T) {
	t.Parallel()
	s := newService(t)
	annPath, ann := s.member("ann")
	bobPath, bob := s.member("bob")
	now := s.clock.wall().Unix()
	a, err := s.keys.verify(ann, now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.keys.verify(bob, now)
	if err != nil {
		t.Fatal(err)
	}
	s.do(s.signer().sign(a), "GET", annPath, "").want(t, 200, "")
	a.session, b.session = b.session, a.session
	for name, c := range map[string]claims{"ann in bob's session": a, "bob in ann's session": b} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{annPath, bobPath, "/api/users/me"} {
				s.do(s.signer().sign(c), "GET", path, "").want(t, 401, "invalid_token")
			}
		})
	}
	t.Run("a session that never was", func(t *testing.T) {
		a.session = 99
		s.do(s.signer().sign(a), "GET", annPath, "").want(t, 401, "session_ended")
	})
}

func TestTokenOfALogin(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, first := s.member("ann")
	s.clock.add(time.Second)
	second := s.login("ann")
	now := s.clock.wall().Unix()
	a, err := s.keys.verify(first, now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.keys.verify(second, now)
	if err != nil {
		t.Fatal(err)
	}
	if a.id == b.id || len(a.id) < 26 {
		t.Errorf("the names of the tokens are %s and %s", a.id, b.id)
	}
	want := claims{fresh: true, issued: now, id: b.id, subject: 1, notBefore: now, expires: now + 900, session: a.session + 1}
	if !sameClaims(b, want) {
		t.Errorf("got %+v, want %+v", b, want)
	}
	s.clock.add(15*time.Minute - time.Second)
	s.do(first, "GET", "/api/users/me", "").want(t, 401, "expired_token")
	s.do(second, "GET", "/api/users/me", "").want(t, 200, "")
	s.clock.add(time.Second)
	s.do(second, "GET", "/api/users/me", "").want(t, 401, "expired_token")
}

func TestSessionEndsOnTheNextRequest(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		end  func(s *service, path, token, admin string) reply
	}{
		{"logged out", func(s *service, path, token, admin string) reply {
			return s.do(token, "POST", "/api/logout", "")
		}},
		{"logged out everywhere from another session", func(s *service, path, token, admin string) reply {
			return s.do(s.login("ann"), "POST", "/api/logout?all=true", "")
		}},
		{"the user deleted", func(s *service, path, token, admin string) reply {
			return s.do(admin, "DELETE", path, "")
		}},
		{"the user disabled", func(s *service, path, token, admin string) reply {
			return s.do(admin, "PUT", path, `{"disabled":true}`)
		}},
		{"the user disabled and enabled again", func(s *service, path, token, admin string) reply {
			s.do(admin, "PUT", path, `{"disabled":true}`).want(s.t, 200, "")
			return s.do(admin, "PUT", path, `{"disabled":false}`)
		}},
		{"the password changed by an admin", func(s *service, path, token, admin string) reply {
			return s.do(admin, "PUT", path, `{"password":"another good password"}`)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newService(t)
			path, token := s.member("ann")
			_, admin := s.admin("root")
			s.do(token, "GET", path, "").want(t, 200, "")
			if r := row.end(s, path, token, admin); r.status >= 300 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			for _, method := range []string{"GET", "PUT", "DELETE"} {
				r := s.do(token, method, "/api/users/me", "").want(t, 401, "session_ended")
				if got := r.header.Get("WWW-Authenticate"); got != `Bearer error="invalid_token"` {
					t.Errorf("WWW-Authenticate: %s", got)
				}
			}
			s.do(admin, "GET", "/api/users/me", "").want(t, 200, "")
		})
	}
}

func TestSessionEndsAtItsTime(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) { c.accessTTL, c.refreshTTL = 2*time.Hour, time.Hour })
	path, token := s.member("ann")
	s.clock.add(time.Hour - time.Second)
	s.do(token, "GET", path, "").want(t, 200, "")
	s.clock.add(time.Second)
	s.do(token, "GET", path, "").want(t, 401, "session_ended")
}

func TestRoleCountsOnTheNextRequest(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, root := s.admin("root")
	path, ann := s.member("ann")
	other, _ := s.register("bob")
	s.do(ann, "PUT", other, `{"username":"b1"}`).want(t, 403, "forbidden")
	s.do(root, "PUT", path, `{"role":"admin"}`).want(t, 200, "")
	s.do(ann, "PUT", other, `{"username":"b2"}`).want(t, 200, "")
	s.do(root, "PUT", path, `{"role":"member"}`).want(t, 200, "")
	s.do(ann, "PUT", other, `{"username":"b3"}`).want(t, 403, "forbidden")
}

func TestARefusalSaysWhoMayDoIt(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, ann := s.member("ann")
	other, _ := s.register("bob")
	for _, c := range []struct{ method, path, want string }{
		{"DELETE", other, "Only the user itself or an admin may do this"},
		{"GET", "/api/events", "Only an admin may do this"},
	} {
		if got := s.do(ann, c.method, c.path, "").want(t, 403, "forbidden").field("error"); got != c.want {
			t.Errorf("%s %s says %q, want %q", c.method, c.path, got, c.want)
		}
	}
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, annToken := s.member("ann") // user 1
	s.register("bob")              // user 2
	_, rootToken := s.admin("root")
	const (
		ann, root, stranger = "ann", "root", "a stranger"
	)
	tokens := map[string]string{ann: annToken, root: rootToken, stranger: ""}
	for _, row := range []struct {
		access    access
		who       string
		id        string // of the path; empty: it has none
		directory directory
		want      error
		target    int64
	}{
		{0, stranger, "", directoryNames, errNoToken, 0},
		{0, ann, "", directoryFull, errForbidden, 0},
		{0, ann, "1", directoryFull, errForbidden, 1},
		{0, root, "", directoryFull, errForbidden, 0},
		{0, root, "3", directoryFull, errForbidden, 3},
		{ownOrAdmin + 1, root, "3", directoryFull, errForbidden, 3},
		{anyone, stranger, "", directorySelf, nil, 0},
		{signedIn, stranger, "", directoryFull, errNoToken, 0},
		{signedIn, ann, "", directorySelf, nil, 0},
		{adminOnly, stranger, "", directoryFull, errNoToken, 0},
		{adminOnly, ann, "", directoryFull, errForbidden, 0},
		{adminOnly, ann, "1", directoryFull, errForbidden, 1},
		{adminOnly, root, "", directorySelf, nil, 0},
		{selfOrAdmin, stranger, "1", directoryFull, errNoToken, 0},
		{selfOrAdmin, ann, "1", directorySelf, nil, 1},
		{selfOrAdmin, ann, "me", directorySelf, nil, 1},
		{selfOrAdmin, ann, "2", directoryFull, errForbidden, 2},
		{selfOrAdmin, ann, "99", directoryFull, errForbidden, 99},
		{selfOrAdmin, ann, "", directoryFull, errForbidden, 0},
		{selfOrAdmin, root, "2", directorySelf, nil, 2},
		{selfOrAdmin, root, "me", directorySelf, nil, 3},
		{selfOnly, stranger, "1", directoryFull, errNoToken, 0},
		{selfOnly, ann, "1", directorySelf, nil, 1},
		{selfOnly, ann, "me", directorySelf, nil, 1},
		{selfOnly, ann, "2", directoryFull, errForbidden, 2},
		{selfOnly, root, "2", directoryFull, errForbidden, 2},
		{selfOnly, ann, "", directoryFull, errForbidden, 0},
		{anySession, stranger, "", directoryFull, errNoToken, 0},
		{anySession, ann, "", directorySelf, nil, 0},
		{ownOrAdmin, ann, "1", directorySelf, nil, 1},
		{ownOrAdmin, ann, "2", directoryFull, errForbidden, 2},
		{ownOrAdmin, root, "2", directorySelf, nil, 2},
		{byDirectory, stranger, "1", directoryFull, errNoToken, 0},
		{byDirectory, ann, "1", directorySelf, nil, 1},
		{byDirectory, ann, "me", directorySelf, nil, 1},
		{byDirectory, ann, "2", directorySelf, errForbidden, 2},
		{byDirectory, ann, "99", directorySelf, errForbidden, 99},
		{byDirectory, ann, "2", directoryNames, nil, 2},
		{byDirectory, ann, "2", directoryFull, nil, 2},
		{byDirectory, root, "2", directorySelf, nil, 2},
		{selfOrAdmin, ann, "01", directoryFull, errUserNotFound, 0},
		{selfOrAdmin, ann, "Me", directoryFull, errUserNotFound, 0},
		{selfOrAdmin, ann, "1 ", directoryFull, errUserNotFound, 0},
		{byDirectory, ann, "0", directoryFull, errUserNotFound, 0},
		{byDirectory, root, "-1", directoryFull, errUserNotFound, 0},
		{byDirectory, stranger, "01", directoryFull, errNoToken, 0},
	} {
		t.Run(fmt.Sprintf("access %d by %s of %q in directory %s", row.access, row.who, row.id, row.directory), func(t *testing.T) {
			s.directory = row.directory
			r := httptest.NewRequest("GET", "/", nil)
			r.SetPathValue("id", row.id)
			if token := tokens[row.who]; token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			x := &exchange{r: r}
			if err := s.admit(x, row.access); !errors.Is(err, row.want) || x.target != row.target {
				t.Errorf("got %v, target %d; want %v, target %d", err, x.target, row.want, row.target)
			}
			if row.want == nil && row.access != anyone && x.who.username != row.who {
				t.Errorf("let in as %q", x.who.username)
			}
		})
	}
}

func TestEveryRouteSaysWhoMayCallIt(t *testing.T) {
	t.Parallel()
	for _, rt := range new(server).routes() {
		if rt.access <= noAccess || rt.access > ownOrAdmin {
			t.Errorf("%s: access %d", rt.pattern, rt.access)
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	open := func(t *testing.T) (*store, string) {
		path := filepath.Join(t.TempDir(), "app.db")
		return openTestStore(t, path), path
	}
	load := func(t *testing.T, st *store, secret string) *keyring {
		t.Helper()
		keys, err := loadKeys(ctx, st, testConfig(secret), testNow)
		if err != nil {
			t.Fatal(err)
		}
		return keys
	}
	newest := func(t *testing.T, st *store) *signingKey {
		t.Helper()
		row, err := st.newestKey()
		if err != nil || row.kid == "" {
			t.Fatalf("key %q, %v", row.kid, err)
		}
		return newSigningKey(row.kid, row.secret)
	}
	accepts := func(keys *keyring, by *signingKey) bool {
		_, err := keys.verify(by.sign(testClaims()), testNow)
		return err == nil
	}

	t.Run("the first start makes a key of 256 bits and a name", func(t *testing.T) {
		st, _ := open(t)
		load(t, st, "")
		key := newest(t, st)
		if len(key.secret) != 32 || bytes.Equal(key.secret, make([]byte, 32)) {
			t.Errorf("secret %x", key.secret)
		}
		if header := headerText(key); !strings.Contains(header, `"kid":"`) {
			t.Errorf("header %s", header)
		}
	})
	t.Run("the next start takes the same key", func(t *testing.T) {
		st, path := open(t)
		first := load(t, st, "")
		other := openTestStore(t, path)
		again := load(t, other, "")
		if !accepts(again, newest(t, st)) || !accepts(first, newest(t, other)) {
			t.Error("a token of before is refused")
		}
	})
	t.Run("two databases have two keys", func(t *testing.T) {
		one, _ := open(t)
		two, _ := open(t)
		ring := load(t, one, "")
		load(t, two, "")
		a, b := newest(t, one), newest(t, two)
		if accepts(ring, b) || bytes.Equal(a.secret, b.secret) || a.header == b.header {
			t.Error("they share a key")
		}
	})
	t.Run("processes that start at the same moment agree on one key", func(t *testing.T) {
		_, path := open(t)
		var group sync.WaitGroup
		for range 4 {
			st := openTestStore(t, path)
			group.Go(func() {
				if _, err := loadKeys(ctx, st, testConfig(""), testNow); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		infos, err := openTestStore(t, path).signingKeys(ctx)
		if len(infos) != 1 || err != nil {
			t.Errorf("%d keys, %v", len(infos), err)
		}
	})
	t.Run("a configured key goes before the one in the database, and is not kept there", func(t *testing.T) {
		st, _ := open(t)
		const secret = "a configured secret of thirty-two"
		configured := load(t, st, secret)
		signer := configured.signer(keyRow{"other", []byte("other")})
		if string(signer.secret) != secret || headerText(signer) != `{"alg":"HS256","typ":"JWT"}` {
			t.Errorf("secret %q, header %s", signer.secret, headerText(signer))
		}
		if key, err := st.newestKey(); key.kid != "" || key.secret != nil || err != nil {
			t.Errorf("the database has %q %x, %v", key.kid, key.secret, err)
		}
		if stored := load(t, st, ""); accepts(stored, signer) {
			t.Error("a key that is configured no more is good")
		}
		key := newest(t, st)
		if !accepts(load(t, st, secret), key) {
			t.Error("the database's keys are good no more")
		}
		infos, err := st.signingKeys(ctx)
		if err != nil || len(infos) != 1 || infos[0].goodUntil != testNow+900 {
			t.Errorf("the database's key is not retired: %+v, %v", infos, err)
		}
		load(t, st, "")
		if again := newest(t, st); again.kid == key.kid {
			t.Error("a retired key signs again")
		}
	})
	t.Run("a database that cannot be read is an error, not a new key", func(t *testing.T) {
		st, err := openStore(ctx, filepath.Join(t.TempDir(), "app.db"))
		if err != nil {
			t.Fatal(err)
		}
		if err := st.close(); err != nil {
			t.Fatal(err)
		}
		if keys, err := loadKeys(ctx, st, testConfig(""), testNow); keys != nil || !errors.Is(err, errStorage) {
			t.Errorf("got %v, %v", keys, err)
		}
	})
	t.Run("a database that cannot be read is not written either", func(t *testing.T) {
		st, path := open(t)
		if err := st.readers.Close(); err != nil {
			t.Fatal(err)
		}
		if keys, err := loadKeys(ctx, st, testConfig(""), testNow); keys != nil || !errors.Is(err, errStorage) {
			t.Errorf("got %v, %v", keys, err)
		}
		if key, err := openTestStore(t, path).newestKey(); key.kid != "" || err != nil {
			t.Errorf("the database now has the key %q, %v", key.kid, err)
		}
	})
	t.Run("an existing key is not replaced", func(t *testing.T) {
		st, _ := open(t)
		load(t, st, "")
		ended, cancel := context.WithCancel(ctx)
		cancel() // no write would come through
		if keys, err := loadKeys(ended, st, testConfig(""), testNow); err != nil || !accepts(keys, newest(t, st)) {
			t.Errorf("got %v, %v", keys, err)
		}
	})
	t.Run("a key that cannot be kept is an error", func(t *testing.T) {
		st, _ := open(t)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if keys, err := loadKeys(ended, st, testConfig(""), testNow); keys != nil || !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, %v", keys, err)
		}
	})
}

// FuzzVerify checks that verify accepts only the tokens that the key signed, in their exact
// spelling.
func FuzzVerify(f *testing.F) {
	keys := ringOf(testKey())
	other := testClaims()
	other.fresh, other.subject, other.session, other.id = false, 20, 300, "??>>~~"
	for _, c := range []claims{testClaims(), other} {
		f.Add(keys.configured[0].sign(c))
	}
	for _, row := range forgeries(keys.configured[0], testClaims(), testNow) {
		f.Add(row.token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		c, err := keys.verify(token, testNow)
		if err != nil {
			if !sameClaims(c, claims{}) {
				t.Errorf("refused, and yet it says %+v", c)
			}
			return
		}
		if again := keys.configured[0].sign(c); again != token {
			t.Errorf("accepted %q, signed %q", token, again)
		}
	})
}

// FuzzClaims checks that userd reads the same claims as encoding/json, whatever another
// holder of the key signs.
func FuzzClaims(f *testing.F) {
	k := testKey()
	f.Add([]byte(claimsText(testClaims(), "more", `{"sub":"2"}`)))
	for _, row := range forgeries(k, testClaims(), testNow) {
		if parts := strings.Split(row.token, "."); len(parts) == 3 && parts[0] == k.header {
			if payload, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil {
				f.Add(payload)
			}
		}
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		c, err := parseClaims(payload)
		if err != nil {
			return
		}
		var all map[string]json.RawMessage
		if err := json.Unmarshal(payload, &all); err != nil {
			t.Fatalf("accepted %q: %v", payload, err)
		}
		for name, want := range map[string]string{
			"fresh": strconv.FormatBool(c.fresh),
			"iat":   strconv.FormatInt(c.issued, 10),
			"jti":   `"` + c.id + `"`,
			"type":  `"access"`,
			"sub":   `"` + strconv.FormatInt(c.subject, 10) + `"`,
			"nbf":   strconv.FormatInt(c.notBefore, 10),
			"exp":   strconv.FormatInt(c.expires, 10),
			"sid":   `"` + strconv.FormatInt(c.session, 10) + `"`,
		} {
			if got := string(all[name]); got != want {
				t.Errorf("%s is %s, read as %s", name, got, want)
			}
		}
		if c.id == "" || min(c.issued, c.notBefore, c.expires, c.subject, c.session) <= 0 {
			t.Errorf("accepted %+v", c)
		}
	})
}

// ringOf returns a keyring of one key.
func ringOf(key *signingKey) *keyring {
	return newKeyring(func(string, int64) ([]byte, error) { return nil, errNoKey }, key)
}

// testConfig returns a configuration with this key, or without a key if it is empty.
func testConfig(secret string) *config {
	return &config{settings: settings{accessTTL: 15 * time.Minute}, secret: []byte(secret)}
}

// sameClaims reports whether the claims are equal, whichever key signed them.
func sameClaims(a, b claims) bool {
	a.kid, b.kid = "", ""
	return reflect.DeepEqual(a, b)
}

// A token with another header is refused without a read of the database, even if a
// holder of the key signed it. The header of a key is only looked up once.
func TestOnlyTheHeaderOfAKeyIsLookedUp(t *testing.T) {
	t.Parallel()
	const kid = "abcdefgh"
	var asked []string
	keys := newKeyring(func(kid string, _ int64) ([]byte, error) {
		asked = append(asked, kid)
		return []byte("secret"), nil
	})
	for _, header := range []string{"", kid, kidPrefix + kid, kid + kidSuffix, kidPrefix + kidSuffix, kidPrefix + "ABCDEFGH" + kidSuffix, kidPrefix + kid + "," + kidSuffix} {
		if _, err := keys.keyByHeader(encode64(header), testNow); err != errBadToken {
			t.Errorf("%q: %v", header, err)
		}
	}
	if _, err := keys.keyByHeader(encode64(kidPrefix+kid+kidSuffix)+"=", testNow); err != errBadToken {
		t.Errorf("padded: %v", err)
	}
	if len(asked) != 0 {
		t.Errorf("looked up %q", asked)
	}
	for range 2 {
		if _, err := keys.keyByHeader(encode64(kidPrefix+kid+kidSuffix), testNow); err != nil {
			t.Error(err)
		}
	}
	if len(asked) != 1 {
		t.Errorf("looked up %q", asked)
	}
}

// For each route, the table says whether it admits a stranger, another member, the member
// that the path names, and an admin.
func TestAccess(t *testing.T) {
	t.Parallel()
	s := newService(t)
	rows := map[string][4]int{ // the status for a stranger, another member, the member itself, an admin
		"GET /healthz":           {200, 200, 200, 200},
		"GET /readyz":            {200, 200, 200, 200},
		"GET /metrics":           {401, 403, 403, 200},
		"GET /":                  {200, 200, 200, 200},
		"GET /console":           {404, 404, 404, 404}, // off
		"GET /api/test":          {200, 200, 200, 200},
		"POST /api/register":     {400, 400, 400, 400},
		"POST /api/login":        {400, 400, 400, 400},
		"POST /api/login/factor": {400, 400, 400, 400},
		"POST /api/refresh":      {401, 401, 401, 401}, // an access token does not refresh
		"POST /api/logout":       {401, 204, 204, 204},
		"GET /api/verify":        {401, 200, 200, 200},
		"GET /api/users":         {401, 200, 200, 200},
		"POST /api/users":        {401, 403, 403, 400},
		"GET /api/users/{id}":    {401, 200, 200, 200},
		"PUT /api/users/{id}":    {401, 403, 200, 200},
		"PATCH /api/users/{id}":  {401, 403, 200, 200},
		"DELETE /api/users/{id}": {401, 403, 200, 200},

		"GET /api/users/{id}/sessions":          {401, 403, 200, 200},
		"DELETE /api/users/{id}/sessions":       {401, 403, 204, 204},
		"DELETE /api/users/{id}/sessions/{sid}": {401, 403, 404, 404},
		"POST /api/introspect":                  {401, 403, 403, 415},
		"GET /api/users/{id}/keys":              {401, 403, 200, 200},
		"POST /api/users/{id}/keys":             {401, 403, 400, 400},
		"DELETE /api/users/{id}/keys/{key}":     {401, 403, 404, 404},
		"GET /api/events":                       {401, 403, 403, 200},
		"GET /api/users/{id}/totp":              {401, 403, 200, 403},
		"POST /api/users/{id}/totp":             {401, 403, 201, 403},
		"POST /api/users/{id}/totp/confirm":     {401, 403, 400, 403},
		"DELETE /api/users/{id}/totp":           {401, 403, 404, 404},
		"POST /api/users/{id}/recovery-codes":   {401, 403, 404, 403},
		"GET /openapi.json":                     {200, 200, 200, 200},

		"POST /api/password/forgot":            {403, 403, 403, 403},
		"POST /api/password/reset":             {400, 400, 400, 400},
		"POST /api/email/verify":               {400, 400, 400, 400},
		"POST /api/email/change":               {400, 400, 400, 400},
		"POST /api/email/undo":                 {400, 400, 400, 400},
		"POST /api/users/{id}/email/verify":    {401, 403, 403, 403}, // mail is off; TestAVerifyMailIsSentAgain has the others
		"POST /api/users/{id}/reset-link":      {401, 403, 403, 201},
		"POST /api/users/{id}/approve":         {401, 403, 403, 200},
		"GET /api/invitations":                 {401, 403, 403, 200},
		"POST /api/invitations":                {401, 403, 403, 201},
		"DELETE /api/invitations/{invitation}": {401, 403, 403, 404},

		"GET /api/mail":               {401, 403, 403, 200},
		"POST /api/mail/{mail}/retry": {401, 403, 403, 404},

		"POST /api/invitations/{invitation}/send": {401, 403, 403, 403}, // mail is off

		"GET /reset":  {200, 200, 200, 200},
		"GET /invite": {200, 200, 200, 200},
		"GET /verify": {200, 200, 200, 200},
		"GET /change": {200, 200, 200, 200},
		"GET /undo":   {200, 200, 200, 200},
	}
	n := 0
	_, root := s.admin("root")
	for _, rt := range s.routes() {
		want, ok := rows[rt.pattern]
		if !ok {
			t.Errorf("%s: a route without a row here", rt.pattern)
			continue
		}
		for i, who := range []string{"a stranger", "another member", "the member itself", "an admin"} {
			n++
			path, _ := s.register(fmt.Sprintf("user%d", n))
			token := ""
			switch i {
			case 1:
				_, token = s.member(fmt.Sprintf("other%d", n))
			case 2:
				token = s.login(fmt.Sprintf("user%d", n))
			case 3:
				token = s.login("root")
			}
			method, pattern, _ := strings.Cut(rt.pattern, " ")
			body := "{}"
			if method == "GET" || method == "DELETE" {
				body = ""
			}
			r := s.do(token, method, strings.NewReplacer("/api/users/{id}", path, "{sid}", "999999", "{invitation}", "999999", "{key}", "999999").Replace(pattern), body)
			if r.status != want[i] {
				t.Errorf("%s by %s: got %d %s, want %d", rt.pattern, who, r.status, r.body, want[i])
			}
		}
	}
	s.do(root, "GET", "/api/users", "").want(t, 200, "")
}

// An actCase is one act: a request to a route that sets one field, or does
// something without a field.
type actCase struct {
	field string // of the body, or "": the request itself
	value string // of the field, in JSON
	query string
	own   bool // it requires proof if the caller does it to itself
	other bool // it requires proof if an admin does it to another user
}

// actCases is the table of design section 5: for each route that is not a read
// and admits only users, every field of its body.
var actCases = map[string][]actCase{
	"POST /api/logout": {
		{field: ""},
		{query: "?all=false"},
		{query: "?all=true", own: true},
	},
	"POST /api/users": {
		{field: "username", value: `"new1"`},
		{field: "email", value: `"new1@example.com"`},
		{field: "password", value: `"another long one"`},
		{field: "role", value: `"member"`},
		{field: "role", value: `"admin"`, other: true},
	},
	"PUT /api/users/{id}":                   changeCases,
	"PATCH /api/users/{id}":                 changeCases,
	"DELETE /api/users/{id}":                {{own: true, other: true}},
	"DELETE /api/users/{id}/sessions":       {{own: true, other: true}},
	"DELETE /api/users/{id}/sessions/{sid}": {{own: true, other: true}}, // for the current one, see below
	"POST /api/invitations": {
		{own: true, other: true},
		{field: "email", value: `"new1@example.com"`, own: true, other: true},
		{field: "username", value: `"new1"`, own: true, other: true},
		{field: "uses", value: `2`, own: true, other: true},
		{field: "expires_in", value: `3600`, own: true, other: true},
	},
	"POST /api/invitations/{invitation}/send": {{own: true, other: true}},
	"DELETE /api/invitations/{invitation}":    {{}}, // like the revocation of a key, it can only help
	"POST /api/users/{id}/approve":            {{}},
	"POST /api/mail/{mail}/retry":             {{}},
	"POST /api/users/{id}/email/verify":       {{}}, // to the address that the user has
	"POST /api/users/{id}/keys": {
		{field: "name", value: `"job"`, own: true, other: true},
		{field: "scope", value: `"write"`, own: true, other: true},
		{field: "expires_in", value: `3600`, own: true, other: true},
	},
	"DELETE /api/users/{id}/keys/{key}":   {{}}, // the emergency act
	"POST /api/users/{id}/totp":           {{own: true}},
	"DELETE /api/users/{id}/totp":         {{own: true, other: true}},
	"POST /api/users/{id}/recovery-codes": {{own: true}},
	"POST /api/users/{id}/reset-link": {
		{own: true, other: true},
		{field: "expires_in", value: `60`, own: true, other: true},
	},
}

var changeCases = []actCase{
	{field: ""}, // changes nothing, as the fields that are ignored
	{field: "username", value: `"new1"`, own: true, other: true},
	{field: "email", value: `"new1@example.com"`, own: true, other: true},
	{field: "password", value: `"another long one"`, own: true, other: true},
	{field: "role", value: `"admin"`, own: true, other: true},
	{field: "disabled", value: `true`, own: true, other: true},
	{field: "id", value: `7`},
	{field: "created_at", value: `7`},
	{field: "updated_at", value: `7`},
	{field: "last_login_at", value: `7`},
	{field: "email_verified_at", value: `7`},
	{field: "pending", value: `7`},
	{field: "pending_email", value: `7`},
	{field: "service", value: `7`},
	{field: "email_verified", value: `true`, own: true, other: true},
}

// A prover is a state of the caller's proof.
type prover struct {
	name     string
	token    func(s *service, name string) string
	password string // sent as current_password
	proves   bool
	code     string // of the answer if it does not prove
	always   bool   // the answer has the code even if the act requires no proof
}

var provers = []prover{
	{name: "a login just now", proves: true,
		token: func(s *service, name string) string { return s.login(name) }},
	{name: "a login 15 minutes ago", proves: true,
		token: func(s *service, name string) string { return s.loginBefore(name, 15*time.Minute) }},
	{name: "a login 15 minutes and a second ago", code: "fresh_login_required",
		token: func(s *service, name string) string { return s.loginBefore(name, 15*time.Minute+time.Second) }},
	{name: "a login 23 hours ago", code: "fresh_login_required",
		token: func(s *service, name string) string { return s.loginBefore(name, 23*time.Hour) }},
	{name: "a refresh just now", code: "fresh_login_required", token: refreshed},
	{name: "a login before the clock was set back by a minute", proves: true,
		token: func(s *service, name string) string { return s.loginBefore(name, -time.Minute) }},
	{name: "a refresh, with the password", proves: true, password: goodPassword, token: refreshed},
	{name: "a refresh, with a wrong password", password: "wrong", code: "wrong_password", always: true, token: refreshed},
	{name: "a login, with a wrong password", password: "wrong", code: "wrong_password", always: true,
		token: func(s *service, name string) string { return s.login(name) }},
}

// loginBefore returns the access token of a login, and sets the wall clock forward.
func (s *service) loginBefore(name string, age time.Duration) string {
	token := s.login(name)
	s.clock.set(s.clock.wall().Add(age))
	return token
}

func refreshed(s *service, name string) string {
	_, refresh := s.pair(name)
	return s.do(refresh, "POST", "/api/refresh", "").want(s.t, 200, "").field("access_token")
}

// The proof table: for each route, field, caller and proof, whether the act is done.
func TestProofTable(t *testing.T) {
	t.Parallel()
	for _, rt := range new(server).routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		if rt.access == anyone || rt.access == resourceServer || method == "GET" || strings.HasSuffix(path, "/totp/confirm") { // the code of the new factor is its proof
			if rt.proof != noProof {
				t.Errorf("%s requires proof, but is not an act of a user", rt.pattern)
			}
			continue
		}
		cases := actCases[rt.pattern]
		var fields []string
		if body := bodies[rt.pattern]; body != nil {
			fields = memberNames(body)
		}
		for _, field := range fields {
			if field != "current_password" && field != "otp" && // see TestProofWithASecondFactor
				!slices.ContainsFunc(cases, func(c actCase) bool { return c.field == field }) {
				t.Errorf("%s: no row for the field %s", rt.pattern, field)
			}
		}
		if len(cases) == 0 {
			t.Errorf("%s: no row", rt.pattern)
		}
		t.Run(rt.pattern, func(t *testing.T) {
			t.Parallel()
			s := newService(t, unlimited, withMail, func(c *settings) { c.accessTTL = 24 * time.Hour })
			_, _ = s.admin("keeper") // never the last admin
			for _, act := range cases {
				for _, p := range provers {
					for _, who := range []string{"a member of itself", "an admin of itself", "an admin of another"} {
						testAct(t, s, rt, method, path, act, p, who)
					}
				}
			}
		})
	}
}

// testAct does one act, and compares the answer with the table.
func testAct(t *testing.T, s *service, rt route, method, path string, act actCase, p prover, who string) {
	t.Helper()
	s.acts++
	caller, other := fmt.Sprintf("caller%d", s.acts), fmt.Sprintf("other%d", s.acts)
	target := caller
	required := act.own
	if who == "an admin of another" {
		target, required = other, act.other
	}
	if !strings.Contains(path, "{id}") {
		required = act.own || act.other
	}
	if rt.access == selfOnly && target == other {
		return // forbidden, whatever the proof is
	}
	if who == "a member of itself" && (slices.Contains([]string{"role", "disabled", "email_verified"}, act.field) || rt.access == adminOnly) {
		return // forbidden, whatever the proof is
	}
	callerRole := admin
	if who == "a member of itself" {
		callerRole = member
	}
	id := s.addNamed(caller, callerRole, false)
	if target == other {
		id = s.addNamed(other, member, false)
	}
	token := p.token(s, caller)
	replace := []string{"{id}", strconv.FormatInt(id, 10)}
	for name, value := range map[string]func() string{
		"{sid}": func() string {
			s.login(target)
			return strconv.FormatInt(scanStore[int64](t, s, "SELECT max(id) FROM session"), 10)
		},
		"{invitation}": s.anInvitation,
		"{key}":        func() string { return s.keyToRevoke(id) },
		"{mail}":       s.aMail,
	} {
		if strings.Contains(path, name) {
			replace = append(replace, name, value())
		}
	}

	fields := map[string]json.RawMessage{}
	if rt.pattern == "POST /api/users" {
		fields["username"], fields["email"], fields["password"] = quoted(fmt.Sprintf("made%d", s.acts)), quoted(fmt.Sprintf("made%d@example.com", s.acts)), quoted("another long one")
	}
	if rt.pattern == "POST /api/users/{id}/keys" {
		fields["name"], fields["scope"], fields["expires_in"] = quoted("job"), quoted("read"), json.RawMessage("3600")
	}
	if act.field != "" {
		value := strings.Replace(act.value, "new1", fmt.Sprintf("new%d", s.acts), 1)
		if act.field == "role" && method != "POST" && who == "an admin of itself" {
			value = `"member"`
		}
		fields[act.field] = json.RawMessage(value)
	}
	if p.password != "" {
		fields["current_password"] = quoted(p.password)
	}
	body, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	r := s.do(token, method, strings.NewReplacer(replace...).Replace(path)+act.query, string(body))
	if bodies[rt.pattern] == nil { // it does not check the password
		p.always = false
	}
	name := fmt.Sprintf("%s %s=%s%s by %s, with %s", rt.pattern, act.field, act.value, act.query, who, p.name)
	switch refuse := p.always || required && !p.proves; {
	case refuse && (r.status != 401 || r.field("code") != p.code):
		t.Errorf("%s: got %d %s, want 401 %s", name, r.status, r.body, p.code)
	case !refuse && r.status >= 300 && r.field("code") != "factor_not_found" && r.field("code") != "email_not_verified":
		t.Errorf("%s: got %d %s, want success", name, r.status, r.body)
	case refuse && p.code == "fresh_login_required" && r.header.Get("WWW-Authenticate") != `Bearer error="insufficient_user_authentication", max_age="900"`:
		t.Errorf("%s: challenged with %s", name, r.header.Get("WWW-Authenticate"))
	}
}

func quoted(s string) json.RawMessage { return json.RawMessage(strconv.Quote(s)) }

// scanStore returns the only value of a query.
func scanStore[T any](t *testing.T, s *service, query string) (v T) {
	t.Helper()
	if err := s.store.read(query, errStorage, []any{&v}); err != nil {
		t.Fatal(err)
	}
	return v
}

// A request that changes nothing requires no proof. Neither does the end of the current
// session.
func TestNoProofIsNeeded(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, _ := s.register("ann")
	stale := refreshed(s, "ann")
	s.do(stale, "PUT", path, `{"username":"ann","email":"ann@example.com","role":"member","disabled":false}`).want(t, 200, "")
	s.do(stale, "DELETE", path+"/sessions/1", "").want(t, 204, "")
	s.do(stale, "GET", path, "").want(t, 401, "session_ended")
	stale = refreshed(s, "ann")
	s.do(stale, "POST", "/api/logout", "").want(t, 204, "")
}

// A database of an earlier build can have a key whose tokens were to live for years.
func TestARetiredKeyEndsWithinADay(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) { c.accessTTL = 10 * 365 * 24 * time.Hour })
	path, token := s.member("ann")
	leaked := s.signer()
	c, err := s.keys.verify(token, s.clock.wall().Unix())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.store.rotateKey(t.Context(), randomKey(), false, s.clock.wall().Unix()); err != nil {
		t.Fatal(err)
	}
	s.clock.add(24*time.Hour - time.Second)
	c.issued = s.clock.wall().Unix()
	s.do(token, "GET", path, "").want(t, 200, "")
	s.do(leaked.sign(c), "GET", path, "").want(t, 200, "")
	s.clock.add(time.Second)
	s.do(token, "GET", path, "").want(t, 401, "expired_token")
	s.do(leaked.sign(c), "GET", path, "").want(t, 401, "invalid_token")
	if _, err := s.store.sweep(t.Context(), 0, s.clock.wall().Unix()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, s, "signing_key"); n != 1 {
		t.Errorf("%d keys are left", n)
	}
}

func TestKeyRotation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, old := s.member("ann")
	if err := s.store.rotateKey(t.Context(), randomKey(), false, s.clock.wall().Unix()); err != nil {
		t.Fatal(err)
	}
	s.do(old, "GET", path, "").want(t, 200, "")
	renewed := s.login("ann") // by the key that another process made
	if header(old) == header(renewed) {
		t.Error("the old key still signs")
	}
	s.do(renewed, "GET", path, "").want(t, 200, "")

	// When the last token that the old key can have signed is dead, so is the key:
	// a thief of it can sign any claims.
	c, err := s.keys.verify(old, s.clock.wall().Unix())
	if err != nil {
		t.Fatal(err)
	}
	stolen := s.keys.byHeader[header(old)]
	s.clock.add(15*time.Minute - time.Second)
	c.expires = s.clock.wall().Add(time.Hour).Unix()
	s.do(stolen.sign(c), "GET", path, "").want(t, 200, "")
	s.clock.add(time.Second)
	s.do(stolen.sign(c), "GET", path, "").want(t, 401, "invalid_token")
	if _, err := newKeyring(s.store.keySecret).verify(stolen.sign(c), s.clock.wall().Unix()); err == nil {
		t.Error("a key that has ended verifies")
	}
	if _, err := s.store.sweep(t.Context(), 0, s.clock.wall().Unix()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, s, "signing_key"); n != 1 {
		t.Errorf("%d keys are left", n)
	}
	fresh := newKeyring(s.store.keySecret)
	if _, err := fresh.verify(stolen.sign(c), s.clock.wall().Unix()); err == nil {
		t.Error("a deleted key verifies")
	}
}

func header(token string) string {
	h, _, _ := strings.Cut(token, ".")
	return h
}

// A rotation and a start of a server change only the key that signs: a rotation retires it, and a
// start can make its tokens live longer. If they changed retired keys too, a stolen key would work
// longer after each of them.
func TestARetiredKeyStaysAsItIs(t *testing.T) {
	t.Parallel()
	s := newService(t)
	begin := s.wall()
	rotate := func() error { return s.store.rotateKey(t.Context(), randomKey(), false, s.wall().Unix()) }
	load := func(secret string, ttl time.Duration) func() error {
		return func() error {
			c := testConfig(secret)
			c.accessTTL = ttl
			_, err := loadKeys(t.Context(), s.store, c, s.wall().Unix())
			return err
		}
	}
	for i, step := range []struct {
		do   func() error
		want string // the minute in which each key was retired, and the minutes that a token lives
	}{
		{rotate, "1/15 -/15"},
		{rotate, "1/15 2/15 -/15"},
		{load("", time.Hour), "1/15 2/15 -/60"},
		{load("", time.Minute), "1/15 2/15 -/60"},
		{load("a secret of more than 32 bytes, of course", time.Hour), "1/15 2/15 5/60"},
		{load("", time.Hour), "1/15 2/15 5/60 -/60"},
	} {
		s.clock.add(time.Minute)
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		got := scanStore[string](t, s, fmt.Sprintf(`SELECT group_concat(iif(retired_at = 0, '-', (retired_at - %d) / 60) || '/' || (token_ttl / 60), ' ')
			FROM (SELECT retired_at, token_ttl FROM signing_key ORDER BY id)`, begin.Unix()))
		if got != step.want {
			t.Errorf("step %d: the keys are %s, want %s", i+1, got, step.want)
		}
		if key, err := s.store.newestKey(); err != nil || (key.kid == "") == strings.Contains(got, "-") {
			t.Errorf("step %d: the key %q signs, %v", i+1, key.kid, err)
		}
	}
	// Of two servers that start concurrently, the longer life counts.
	release := groupcommittest.Busy(t, s.store.writer)
	first := groupcommittest.Enqueue(t, s.store.writer, load("", 3*time.Hour))
	second := groupcommittest.Enqueue(t, s.store.writer, load("", 2*time.Hour))
	release()
	for _, err := range groupcommittest.Answers(t, first, second) {
		wantError(t, "a start", err, nil)
	}
	if got := scanStore[int](t, s, `SELECT token_ttl FROM signing_key WHERE retired_at = 0`); got != 3*60*60 {
		t.Errorf("a token lives %d seconds", got)
	}
}

// One secret must not serve for two uses.
func TestEachSecretOfTheDatabaseDiffers(t *testing.T) {
	t.Parallel()
	s := newService(t)
	_, token := s.member("ann")
	s.enrol(token)
	s.loginWith("ann", "").want(t, 401, "second_factor_required")
	if got := scanStore[string](t, s, `SELECT group_concat(name, ' ') FROM (SELECT name FROM secret GROUP BY value ORDER BY name)`); got != "data mfa refresh" {
		t.Errorf("different secrets: %s", got)
	}
}

// The configured key signs, with PyJWT's header. The previous configured key and the keys
// of the database still verify.
func TestConfiguredKeys(t *testing.T) {
	t.Parallel()
	s := newService(t)
	path, fromDatabase := s.member("ann")
	use := func(secret, previous string) {
		t.Helper()
		keys, err := loadKeys(t.Context(), s.store, &config{settings: s.settings, secret: []byte(secret), previousSecret: []byte(previous)}, s.clock.wall().Unix())
		if err != nil {
			t.Fatal(err)
		}
		s.keys = keys
	}
	use("first-secret-first-secret-first-secret", "")
	first := s.login("ann")
	if header(first) != "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9" {
		t.Errorf("the header is %s", header(first))
	}
	s.do(fromDatabase, "GET", path, "").want(t, 200, "")
	use("second-secret-second-secret-second-secret", "first-secret-first-secret-first-secret")
	second := s.login("ann")
	s.do(first, "GET", path, "").want(t, 200, "")
	s.do(second, "GET", path, "").want(t, 200, "")
	use("second-secret-second-secret-second-secret", "")
	s.do(first, "GET", path, "").want(t, 401, "invalid_token")
	s.do(second, "GET", path, "").want(t, 200, "")
}

// The names are those that Flask-JWT-Extended writes, for services that verify the
// tokens with PyJWT.
func TestTokensNameTheirIssuerAndAudience(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		names     tokenNames
		want      string // in the payload
		unwelcome tokenNames
	}{
		{"an issuer", tokenNames{issuer: "https://users.example.com"}, `"iss":"https://users.example.com","exp"`, tokenNames{issuer: "other"}},
		{"an issuer is required", tokenNames{issuer: "userd"}, `"iss":"userd"`, tokenNames{}},
		{"an audience", tokenNames{audience: []string{"api"}, accepted: []string{"api"}}, `,"aud":"api","exp"`, tokenNames{audience: []string{"app"}}},
		{"audiences", tokenNames{audience: []string{"api", "app"}, accepted: []string{"app"}}, `,"aud":["api","app"],"exp"`, tokenNames{audience: []string{"api", "web"}}},
		{"an audience is required", tokenNames{audience: []string{"api"}, accepted: []string{"api"}}, `"aud"`, tokenNames{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newService(t, func(x *settings) { x.tokenNames = c.names })
			_, token := s.member("ann")
			payload, _ := tagged.DecodeBase64URL(strings.Split(token, ".")[1])
			if !strings.Contains(string(payload), c.want) {
				t.Errorf("the payload %s lacks %s", payload, c.want)
			}
			s.do(token, "GET", "/api/users/me", "").want(t, 200, "")
			x := testSession(t, s)
			other := (&settings{accessTTL: s.accessTTL, tokenNames: c.unwelcome}).newClaims(&x, s.clock.wall(), true)
			s.do(s.signer().sign(other), "GET", "/api/users/me", "").want(t, 401, "expired_token")
			other.tokenNames = c.names
			s.do(s.signer().sign(other), "GET", "/api/users/me", "").want(t, 200, "")
		})
	}
	none := newService(t)
	none.member("ann")
	x := testSession(t, none)
	named := (&settings{accessTTL: none.accessTTL, tokenNames: tokenNames{issuer: "other", audience: []string{"a", "b"}}}).newClaims(&x, none.clock.wall(), true)
	none.do(none.signer().sign(named), "GET", "/api/users/me", "").want(t, 200, "")
}

// testSession returns the first session of a service.
func testSession(t *testing.T, s *service) session {
	t.Helper()
	x, err := s.store.session(1)
	if err != nil {
		t.Fatal(err)
	}
	return x
}
