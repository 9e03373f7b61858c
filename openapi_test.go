package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"userd/internal/clientaddr"
	"userd/internal/otp"
	"userd/internal/reqbody"
	"userd/internal/sse"
	"userd/internal/validate"
)

// An object is a JSON object.
type object = map[string]any

// A document is openapi.json.
type document struct {
	Security   []object
	Paths      map[string]map[string]json.RawMessage
	Others     map[string]message    `json:"x-other-requests"`
	Errors     map[string]errorEntry `json:"x-errors"` // by code
	Components struct {
		Schemas   map[string]object
		Responses map[string]message
	}
	operations []*operation // of Paths
	other      *operation   // any other request

	places map[uintptr]string // of schemas, by the address of their map

	mu   sync.Mutex
	seen map[string]string // facts that real exchanges have shown, each with one of them
}

// An errorEntry is what the document says about all errors with one code.
type errorEntry struct {
	Status int
	Errors []string // the texts
	Action string   // what a client should do
}

type operation struct {
	name        string // like the pattern of a route
	OperationID string
	Access      string   `json:"x-access"`
	KeyScopes   []string `json:"x-key-scopes"`
	Security    []object // nil: the document's
	Parameters  []value
	RequestBody message
	Responses   map[string]message // by status
}

// A message is a request's body or a response.
type message struct {
	Required bool
	Headers  map[string]value
	Content  map[string]value // by media type; nil: no body
}

// A value is a parameter, a header or a body.
type value struct {
	Name, In string // of a parameter
	Required bool
	Schema   object
	Example  any
	Examples map[string]struct{ Value any }
}

// examples returns the examples, sorted by name.
func (v value) examples() []any {
	var list []any
	if v.Example != nil {
		list = append(list, v.Example)
	}
	for _, name := range slices.Sorted(maps.Keys(v.Examples)) {
		list = append(list, v.Examples[name].Value)
	}
	return list
}

// codes returns the error codes in the examples of a response.
func (m message) codes() (list []string) {
	for _, e := range m.Content["application/json"].examples() {
		if e, ok := e.(object); ok && e["error"] != nil && e["code"] != nil {
			list = append(list, e["code"].(string))
		}
	}
	return list
}

func readDocument(t *testing.T) *document {
	t.Helper()
	decode := func(text []byte, v any) {
		t.Helper()
		if err := json.Unmarshal(text, v); err != nil {
			t.Fatal(err)
		}
	}
	var raw object
	decode(openAPI(), &raw)
	text, err := json.Marshal(inline(raw, raw))
	if err != nil {
		t.Fatal(err)
	}
	d := &document{places: make(map[uintptr]string), seen: make(map[string]string)}
	decode(text, d)
	for path, item := range d.Paths {
		var shared []value
		if text, ok := item["parameters"]; ok {
			decode(text, &shared)
			delete(item, "parameters")
		}
		for method, text := range item {
			op := &operation{name: strings.ToUpper(method) + " " + path}
			decode(text, op)
			op.Parameters = slices.Concat(shared, op.Parameters)
			d.operations = append(d.operations, op)
		}
	}
	d.other = &operation{name: "any other request", Responses: d.Others}
	for at, s := range d.schemas() {
		d.places[reflect.ValueOf(s).Pointer()] = at
	}
	return d
}

// inline replaces each reference in v by its target, except those to schemas.
func inline(root object, v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = inline(root, v[i])
		}
	case object:
		if ref, ok := v["$ref"].(string); ok && !strings.HasPrefix(ref, "#/components/schemas/") {
			at := strings.Split(ref, "/") // "#", "components", kind and name
			return inline(root, root["components"].(object)[at[2]].(object)[at[3]].(object))
		}
		for name := range v {
			v[name] = inline(root, v[name])
		}
	}
	return v
}

// values returns each parameter, header and body by its place.
func (d *document) values() map[string]value {
	all := make(map[string]value)
	for _, op := range append(d.operations, d.other) {
		for _, p := range op.Parameters {
			all[op.name+" "+p.In+" "+p.Name] = p
		}
		for kind, v := range op.RequestBody.Content {
			all[op.name+" body "+kind] = v
		}
		for status, response := range op.Responses {
			for name, h := range response.Headers {
				all[op.name+" "+status+" header "+http.CanonicalHeaderKey(name)] = h
			}
			for kind, v := range response.Content {
				all[op.name+" "+status+" body "+kind] = v
			}
		}
	}
	return all
}

// schemas returns each schema and each part of one, by its place.
func (d *document) schemas() map[string]object {
	all := make(map[string]object)
	var add func(at string, s object)
	add = func(at string, s object) {
		all[at] = s
		for _, part := range []string{"items", "additionalProperties"} {
			if s, ok := s[part].(object); ok {
				add(at+"/"+part, s)
			}
		}
		properties, _ := s["properties"].(object)
		for name, s := range properties {
			add(at+"."+name, s.(object))
		}
	}
	for at, v := range d.values() {
		add(at, v.Schema)
	}
	for name, s := range d.Components.Schemas {
		add(name, s)
	}
	return all
}

// resolve returns the schema that a reference names.
func (d *document) resolve(ref any) object {
	s := d.Components.Schemas[path.Base(ref.(string))]
	if s == nil {
		panic(ref.(string) + " does not exist")
	}
	return s
}

// Findings are the result of checking a value against a schema.
type findings struct {
	d      *document
	faults []string
	absent []string // described members that the value does not have
}

// check checks a value. It is stricter than JSON Schema: a keyword that it does
// not know is a fault, and so is a member without a description, unless
// additionalProperties allows it.
func (d *document) check(schema object, v any, at string) findings {
	f := findings{d: d}
	f.check(schema, v, at)
	return f
}

func (f *findings) check(schema object, v any, at string) {
	require := func(ok bool, format string, args ...any) {
		if !ok {
			f.faults = append(f.faults, fmt.Sprintf("%s: %v ", at, v)+fmt.Sprintf(format, args...))
		}
	}
	text, isText := v.(string)
	number, isNumber := v.(float64)
	members, isObject := v.(object)
	items, isArray := v.([]any)
	_, isBool := v.(bool)
	has := func(name any) bool { _, ok := members[name.(string)]; return ok }
	for keyword, arg := range schema {
		switch keyword {
		case "description", "default", "examples":
		case "$ref":
			f.check(f.d.resolve(arg), v, at)
		case "type":
			is := map[any]bool{
				"string": isText, "object": isObject, "array": isArray, "boolean": isBool, "null": v == nil,
				"integer": isNumber && number == math.Trunc(number),
			}
			types, several := arg.([]any)
			if !several {
				types = []any{arg}
			}
			require(slices.ContainsFunc(types, func(t any) bool { return is[t] }), "is not of type %v", arg)
		case "const":
			require(v == arg, "is not %v", arg)
		case "enum":
			require(slices.Contains(arg.([]any), v), "is not in %v", arg)
		case "oneOf":
			valid := 0
			for _, s := range arg.([]any) {
				if f.d.check(s.(object), v, at).faults == nil {
					valid++
				}
			}
			require(valid == 1, "is valid by %d of %v", valid, arg)
		case "pattern":
			require(!isText || regexp.MustCompile(arg.(string)).MatchString(text), "does not match %s", arg)
		case "minLength":
			require(!isText || float64(utf8.RuneCountInString(text)) >= arg.(float64), "is shorter than %v", arg)
		case "maxLength":
			require(!isText || float64(utf8.RuneCountInString(text)) <= arg.(float64), "is longer than %v", arg)
		case "minimum":
			require(!isNumber || number >= arg.(float64), "is below %v", arg)
		case "maximum":
			require(!isNumber || number <= arg.(float64), "is above %v", arg)
		case "format":
			_, err := time.Parse(time.RFC3339, text)
			valid, known := map[any]bool{
				"password":  true, // for people
				"int64":     true, // as the type says
				"date-time": err == nil && strings.HasSuffix(text, "Z"),
				"email":     validate.Email(text) == "",
			}[arg]
			require(known, "has the unknown format %v", arg)
			require(!isText || valid, "does not have the format %v", arg)
		case "required":
			for _, name := range arg.([]any) {
				require(!isObject || has(name), "has no %v", name)
			}
		case "dependentRequired":
			for name, others := range arg.(object) {
				for _, other := range others.([]any) {
					require(!has(name) || has(other), "has %s, but no %v", name, other)
				}
			}
		case "properties", "additionalProperties": // below
		case "items":
			for i, item := range items {
				f.check(arg.(object), item, fmt.Sprintf("%s[%d]", at, i))
			}
		default:
			require(false, "has the unknown keyword %s", keyword)
		}
	}
	properties, _ := schema["properties"].(object)
	more, restricted := schema["additionalProperties"]
	for name := range properties {
		if isObject && !has(name) {
			f.absent = append(f.absent, f.d.places[reflect.ValueOf(schema).Pointer()]+"."+name)
		}
	}
	for name, value := range members {
		part, described := properties[name].(object)
		if !described {
			part, described = more.(object)
		}
		if described {
			f.check(part, value, at+"."+name)
		} else {
			require(more == true || properties == nil && !restricted, "has %s, which is not described", name)
		}
	}
}

// checkText checks a header or a parameter, which are text.
func (d *document) checkText(schema object, text, at string) []string {
	var v any = text
	if d.holdsNumbers(schema) {
		json.Unmarshal([]byte(text), &v) // if it fails, the text has the wrong type
	}
	return d.check(schema, v, at).faults
}

// holdsNumbers reports whether a schema accepts integers or booleans.
func (d *document) holdsNumbers(schema object) bool {
	if ref := schema["$ref"]; ref != nil {
		return d.holdsNumbers(d.resolve(ref))
	}
	several, _ := schema["oneOf"].([]any)
	return schema["type"] == "integer" || schema["type"] == "boolean" ||
		slices.ContainsFunc(several, func(s any) bool { return d.holdsNumbers(s.(object)) })
}

func TestSchemaCheck(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	for _, row := range []struct{ claim, schema, good, bad string }{
		{"refuses another type", `{"type":"string"}`, `"x"`, `1`},
		{"refuses a fraction for an integer", `{"type":"integer"}`, `1`, `1.5`},
		{"refuses a value of neither of two types", `{"type":["string","null"]}`, `null`, `false`},
		{"refuses another constant", `{"const":"Bearer"}`, `"Bearer"`, `"bearer"`},
		{"refuses a word that is not listed", `{"enum":["a","b"]}`, `"b"`, `"c"`},
		{"refuses a value of no schema of several", `{"oneOf":[{"type":"integer"},{"const":"me"}]}`, `"me"`, `"x"`},
		{"refuses a value of two schemas of several", `{"oneOf":[{"minimum":1},{"maximum":2}]}`, `0`, `1`},
		{"refuses another pattern", `{"pattern":"^a$"}`, `"a"`, `"ab"`},
		{"refuses a short text", `{"minLength":2}`, `"ää"`, `"ä"`},
		{"refuses a long text", `{"maxLength":1}`, `"ä"`, `"ää"`},
		{"refuses a small number", `{"minimum":1}`, `1`, `0`},
		{"refuses a large number", `{"maximum":1}`, `1`, `2`},
		{"refuses a time in another zone", `{"format":"date-time"}`, `"2026-05-04T03:02:01Z"`, `"2026-05-04T03:02:01+02:00"`},
		{"refuses a text that is not an address", `{"format":"email"}`, `"a@b"`, `"a"`},
		{"refuses a missing member", `{"required":["a"]}`, `{"a":1}`, `{}`},
		{"refuses a member without another", `{"dependentRequired":{"a":["b"]}}`, `{"a":1,"b":1}`, `{"a":1}`},
		{"refuses an invalid member", `{"properties":{"a":{"type":"string"}}}`, `{"a":"x"}`, `{"a":1}`},
		{"refuses a member that is not described", `{"properties":{"a":{}}}`, `{}`, `{"b":1}`},
		{"refuses an invalid additional member", `{"additionalProperties":{"type":"string"}}`, `{"b":"x"}`, `{"b":1}`},
		{"refuses any additional member", `{"additionalProperties":false}`, `{}`, `{"b":1}`},
		{"refuses any member but additional ones", `{"properties":{"a":{"type":"string"}},"additionalProperties":true}`, `{"a":"x","b":1}`, `{"a":1}`},
		{"refuses an invalid item", `{"items":{"type":"string"}}`, `["x"]`, `["x",1]`},
		{"refuses a fault by a referenced schema", `{"$ref":"#/components/schemas/Role"}`, `"admin"`, `"root"`},
		{"refuses a fault by a keyword next to a reference", `{"$ref":"#/components/schemas/User","required":["email"]}`, `{"id":1,"username":"a","email":"b"}`, `{"id":1,"username":"a"}`},
	} {
		var schema object
		var good, bad any
		for text, v := range map[string]any{row.schema: &schema, row.good: &good, row.bad: &bad} {
			if err := json.Unmarshal([]byte(text), v); err != nil {
				t.Fatal(err)
			}
		}
		if faults := d.check(schema, good, "value").faults; faults != nil {
			t.Errorf("it refuses %s: %v", row.good, faults)
		}
		if d.check(schema, bad, "value").faults == nil {
			t.Errorf("%s: it accepts %s", row.claim, row.bad)
		}
	}
	for _, schema := range []object{{"anyOf": []any{}}, {"format": "uuid"}, {"typ": "string"}} {
		if d.check(schema, nil, "value").faults == nil {
			t.Errorf("it accepts %v", schema)
		}
	}
}

// Every schema restricts its values by known keywords, and every example and
// default is valid.
func TestDocumentSchemasAndExamples(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	examples := 0
	valid := func(schema object, v any, at string) {
		examples++
		for _, fault := range d.check(schema, v, at).faults {
			t.Error(fault)
		}
	}
	for at, s := range d.schemas() {
		for _, fault := range d.check(s, nil, at).faults {
			if strings.Contains(fault, " has the unknown ") {
				t.Error(fault)
			}
		}
		if s["type"] == nil && s["$ref"] == nil && s["const"] == nil && s["oneOf"] == nil && s["description"] != "Ignored." ||
			s["type"] == "object" && s["properties"] == nil && s["additionalProperties"] == nil ||
			s["type"] == "array" && s["items"] == nil {
			t.Errorf("%s accepts nearly any value", at)
		}
		list, _ := s["examples"].([]any)
		if v, ok := s["default"]; ok {
			list = append(list, v)
		}
		for _, e := range list {
			valid(s, e, at)
		}
	}
	for at, v := range d.values() {
		for _, e := range v.examples() {
			valid(v.Schema, e, at)
		}
		if v.examples() == nil && strings.Contains(at, " body ") && !strings.HasSuffix(at, "/problem+json") && !strings.HasPrefix(at, "GET /openapi.json ") {
			t.Errorf("%s has no example", at)
		}
	}
	if examples < 300 {
		t.Errorf("only %d examples were found", examples)
	}
}

// A component without a use would not be checked.
func TestDocumentUsesItsComponents(t *testing.T) {
	t.Parallel()
	var d struct{ Components map[string]object }
	if err := json.Unmarshal(openAPI(), &d); err != nil {
		t.Fatal(err)
	}
	delete(d.Components, "securitySchemes") // used by name
	for kind, components := range d.Components {
		for name := range components {
			if !strings.Contains(string(openAPI()), `"#/components/`+kind+"/"+name+`"`) {
				t.Errorf("components/%s/%s is not used", kind, name)
			}
		}
	}
}

// Generators make a type of each component, with a name without punctuation whose
// first letter is a capital. oapi-codegen 2.8.2 refused parameters/id next to schemas/Id.
func TestDocumentComponentsHaveNamesOfTheirOwn(t *testing.T) {
	t.Parallel()
	var d struct{ Components map[string]object }
	if err := json.Unmarshal(openAPI(), &d); err != nil {
		t.Fatal(err)
	}
	delete(d.Components, "examples") // are not types
	seen := make(map[string]string)
	for kind, components := range d.Components {
		for name := range components {
			typeName := strings.ToLower(regexp.MustCompile(`[^A-Za-z0-9]`).ReplaceAllString(name, ""))
			if other, ok := seen[typeName]; ok {
				t.Errorf("components/%s/%s has the name of %s", kind, name, other)
			}
			seen[typeName] = "components/" + kind + "/" + name
		}
	}
}

func TestTheCompressedDocumentIsCurrent(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("assets/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(text, openAPI()) {
		t.Error("assets/openapi.json.gz is out of date; run: gzip -9nkf assets/openapi.json")
	}
}

// A client can be generated from what any server sends: nothing in the document
// depends on an address, {id} is a number or me, and the version is one that
// package managers accept.
func TestDocumentFitsGenerators(t *testing.T) {
	t.Parallel()
	var raw struct {
		Info    struct{ Version string }
		Servers []struct{ URL string }
	}
	if err := json.Unmarshal(openAPI(), &raw); err != nil {
		t.Fatal(err)
	}
	if len(raw.Servers) != 1 || raw.Servers[0].URL != "/" {
		t.Errorf("the servers are %v, want /", raw.Servers)
	}
	page, err := os.ReadFile("docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	onPage := regexp.MustCompile(`version ([0-9]+\.[0-9]+\.[0-9]+) of the API`).FindSubmatch(page)
	if onPage == nil || string(onPage[1]) != raw.Info.Version {
		t.Errorf("the version is %q, docs/api.md has %q", raw.Info.Version, onPage)
	}
	d := readDocument(t)
	ids := 0
	for _, op := range d.operations {
		for _, p := range op.Parameters {
			if p.In != "path" {
				continue
			}
			ids++
			for text, want := range map[string]bool{"1": true, "me": p.Name == "id", "0": false, "01": false, "-1": false, "Me": false, "1.5": false} {
				if faults := d.checkText(p.Schema, text, p.Name); (faults == nil) != want {
					t.Errorf("%s: valid {%s}: %q, want %t: %q", op.name, p.Name, text, want, faults)
				}
			}
		}
	}
	if ids < 6 {
		t.Errorf("only %d path parameters were found", ids)
	}
}

func TestDocumentRoutesAndAccess(t *testing.T) {
	t.Parallel()
	words := map[access]string{anyone: "anyone", signedIn: "signed in", adminOnly: "admin", selfOrAdmin: "self or admin", byDirectory: "by directory", resourceServer: "resource server", selfOnly: "self", anySession: "signed in", ownOrAdmin: "self or admin"}
	d := readDocument(t)
	if want := []object{{"accessToken": []any{}}}; !reflect.DeepEqual(d.Security, want) {
		t.Errorf("the default security is %v, want %v", d.Security, want)
	}
	described, routes, ids := make(map[string]string), make(map[string]string), make(map[string]bool)
	for _, op := range d.operations {
		described[op.name] = op.Access
		anonymous := op.Security != nil && (len(op.Security) == 0 || slices.ContainsFunc(op.Security, func(s object) bool { return len(s) == 0 }))
		if anonymous != (op.Access == "anyone") {
			t.Errorf("%s is for %s, but its security is %v", op.name, op.Access, op.Security)
		}
		if op.OperationID == "" || ids[op.OperationID] {
			t.Errorf("%s: operationId %q is missing or not unique", op.name, op.OperationID)
		}
		ids[op.OperationID] = true
	}
	scopes, keyScopes := make(map[string]string), make(map[string]string)
	for _, op := range d.operations {
		keyed := slices.ContainsFunc(op.Security, func(s object) bool { return s["apiKey"] != nil })
		if scopes[op.name] = fmt.Sprint(op.KeyScopes); keyed != (op.KeyScopes != nil) {
			t.Errorf("%s has the scopes %v, but its security is %v", op.name, op.KeyScopes, op.Security)
		}
	}
	for _, rt := range new(server).routes() {
		routes[rt.pattern] = words[rt.access]
		keyScopes[rt.pattern] = fmt.Sprint(rt.scopes)
	}
	if !maps.Equal(scopes, keyScopes) {
		t.Errorf("the document has the scopes %v\nthe routes have         %v", scopes, keyScopes)
	}
	if !maps.Equal(described, routes) {
		t.Errorf("the document has %v\nthe routes are    %v", described, routes)
	}
}

// The codes, statuses and texts of errors are the same in the code and in the document.
func TestDocumentErrors(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	statuses := make(map[string]int)
	for _, a := range declaredErrors(t) {
		statuses[a.code] = a.status
	}
	var listed []string
	for _, code := range d.Components.Schemas["Code"]["enum"].([]any) {
		listed = append(listed, code.(string))
	}
	slices.Sort(listed)
	if codes := slices.Sorted(maps.Keys(statuses)); !slices.Equal(listed, codes) {
		t.Errorf("the document lists %q\nthe errors have    %q", listed, codes)
	}
	used := make(map[string]int)
	for _, op := range append(d.operations, d.other) {
		for status, response := range op.Responses {
			for _, code := range response.codes() {
				used[code], _ = strconv.Atoi(status)
				if used[code] != statuses[code] {
					t.Errorf("%s: %s has the status %s, want %d", op.name, code, status, statuses[code])
				}
			}
		}
	}
	if !maps.Equal(used, statuses) {
		t.Errorf("the examples have %v\nthe errors are    %v", used, statuses)
	}
	entries := make(map[string]errorEntry)
	for _, a := range declaredErrors(t) {
		entry := entries[a.code]
		entry.Status, entry.Errors = a.status, append(entry.Errors, a.text)
		entries[a.code] = entry
	}
	for code, e := range d.Errors {
		want := entries[code]
		slices.Sort(want.Errors)
		if e.Status != want.Status || !slices.Equal(slices.Sorted(slices.Values(e.Errors)), want.Errors) || e.Action == "" {
			t.Errorf("x-errors describes %s as %+v, want %+v and an action", code, e, want)
		}
		delete(entries, code)
	}
	if len(entries) > 0 {
		t.Errorf("x-errors lacks %v", slices.Sorted(maps.Keys(entries)))
	}
}

var updateDocs = flag.Bool("update", false, "write docs/errors.md")

// docs/errors.md is made from x-errors, in the order of the schema Code.
func TestThePageOfErrorsIsCurrent(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	page := `# Errors

<!-- Made from x-errors in assets/openapi.json: go test -run TestThePageOfErrorsIsCurrent . -args -update -->

Each error has one of these codes. Programs should use the code: the texts can have details, and can
change. [API](api.md#errors) describes the format, and ` + "`/openapi.json`" + ` which operation has which errors.
`
	codes := d.Components.Schemas["Code"]["enum"].([]any)
	slices.SortStableFunc(codes, func(a, b any) int { return d.Errors[a.(string)].Status - d.Errors[b.(string)].Status })
	status := 0
	for _, code := range codes {
		e := d.Errors[code.(string)]
		if e.Status != status {
			status = e.Status
			page += fmt.Sprintf("\n## %d %s\n", status, http.StatusText(status))
		}
		page += fmt.Sprintf("\n### %s\n\n> %s\n\n%s\n", code, strings.Join(e.Errors, "\\\n> "), e.Action)
	}
	if *updateDocs {
		writeFile(t, "docs/errors.md", []byte(page))
	}
	if got, err := os.ReadFile("docs/errors.md"); err != nil || string(got) != page {
		t.Errorf("docs/errors.md is not current (%v): run this test with -args -update", err)
	}
}

func TestDocumentEventTypes(t *testing.T) {
	t.Parallel()
	listed := readDocument(t).Components.Schemas["EventType"]["enum"]
	if want := fmt.Sprint(eventTypes); fmt.Sprint(listed) != want {
		t.Errorf("the document lists %v, want %s", listed, want)
	}
}

// bodies has the decoded body of each route that reads one.
var bodies = map[string]any{
	"POST /api/register":     registerRequest{},
	"POST /api/login":        loginRequest{},
	"POST /api/login/factor": loginFactorRequest{},
	"POST /api/refresh":      refreshRequest{},
	"POST /api/logout":       proofRequest{},
	"POST /api/users":        createRequest{},
	"PUT /api/users/{id}":    updateRequest{},
	"PATCH /api/users/{id}":  updateRequest{},
	"DELETE /api/users/{id}": proofRequest{},

	"POST /api/password/forgot":       forgotRequest{},
	"POST /api/password/reset":        resetRequest{},
	"POST /api/users/{id}/reset-link": linkRequest{},
	"POST /api/email/verify":          verifyEmailRequest{},
	"POST /api/email/change":          codeRequest{},
	"POST /api/email/undo":            codeRequest{},
	"POST /api/invitations":           inviteRequest{},
	"POST /api/users/{id}/keys":       keyRequest{},

	"POST /api/invitations/{invitation}/send": proofRequest{},
	"POST /api/users/{id}/totp":               proofRequest{},
	"POST /api/users/{id}/totp/confirm":       confirmRequest{},
	"DELETE /api/users/{id}/totp":             proofRequest{},
	"POST /api/users/{id}/recovery-codes":     proofRequest{},

	"DELETE /api/users/{id}/sessions":       proofRequest{},
	"DELETE /api/users/{id}/sessions/{sid}": proofRequest{},
}

// memberNames returns the JSON names of a struct's fields, and of those of embedded structs, in
// order.
func memberNames(v any) []string {
	names := []string{}
	for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
		if !f.Anonymous {
			names = append(names, f.Tag.Get("json"))
		}
	}
	return names
}

func TestDocumentMembersOfBodies(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	for _, op := range d.operations {
		request, has := bodies[op.name]
		if op.bodyType() == formType {
			continue
		}
		if has != (op.RequestBody.Content != nil) {
			t.Errorf("%s reads a body: %t; the document has one: %t", op.name, has, !has)
		}
		if !has {
			continue
		}
		schema := op.RequestBody.Content["application/json"].Schema
		if schema["$ref"] != nil {
			schema = d.resolve(schema["$ref"])
		}
		properties, _ := schema["properties"].(object)
		names := slices.Sorted(slices.Values(memberNames(request)))
		if got := slices.Sorted(maps.Keys(properties)); !slices.Equal(got, names) {
			t.Errorf("%s: the document has %q, the route reads %q", op.name, got, names)
		}
		if schema["additionalProperties"] != false {
			t.Errorf("%s: the document allows other members", op.name)
		}
	}
}

// A witness sends requests to a service, and checks each answer and each
// accepted request against the document.
type witness struct {
	*service
	doc    *document
	accept string // of each request
}

// commonHeaders are part of every answer, or defined by HTTP itself.
var commonHeaders = []string{"Cache-Control", "Content-Length", "Content-Type", "Date", "X-Content-Type-Options"}

// invalidRequest has the codes of requests that the document also refuses.
var invalidRequest = []string{"malformed_body", "unknown_member", "wrong_type", "missing_fields", "invalid_fields", "bad_parameter"}

func (w *witness) do(token, method, path, body string, headers ...string) reply {
	w.t.Helper()
	if i := slices.IndexFunc(headers, func(h string) bool { return strings.HasPrefix(h, "Accept: ") }); i >= 0 {
		headers[i] += ", " + w.accept
	} else if w.accept != "" {
		headers = append(headers, "Accept: "+w.accept)
	}
	r := w.service.do(token, method, path, body, headers...)
	op, parameters := w.doc.find(method, path, headers)
	at := fmt.Sprintf("%s %s: %d", method, path, r.status)
	w.observeAnswer(op, r, at)
	if op == w.doc.other {
		return r
	}
	faults := w.doc.checkRequest(op, parameters, body)
	switch code := r.field("code"); {
	case r.status < 400 && faults != nil:
		w.t.Errorf("%s: the service accepts %s, the document refuses it: %q", at, body, faults)
	case faults == nil && slices.Contains(invalidRequest, code):
		w.t.Errorf("%s: the service refuses %s with %s, the document accepts it", at, body, code)
	}
	if r.status < 400 || r.field("code") == "mail_off" { // as if there were mail
		w.observeRequest(op, parameters, body, at)
	}
	return r
}

// find returns the operation of a request, and the request's parameters by
// place and name. Of the headers it returns only those that may be parameters.
func (d *document) find(method, path string, headers []string) (*operation, map[string]string) {
	op, parameters, mux := d.other, make(map[string]string), http.NewServeMux()
	for _, candidate := range d.operations {
		pattern := candidate.name
		if strings.HasSuffix(pattern, "/") {
			pattern += "{$}"
		}
		mux.HandleFunc(pattern, func(_ http.ResponseWriter, r *http.Request) {
			op = candidate
			for _, name := range regexp.MustCompile(`{(\w+)}`).FindAllStringSubmatch(op.name, -1) {
				parameters["path "+name[1]] = r.PathValue(name[1])
			}
			for name, values := range r.URL.Query() {
				parameters["query "+name] = values[0]
			}
		})
	}
	mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, path, nil))
	for _, h := range headers {
		if name, value, _ := strings.Cut(h, ": "); strings.HasPrefix(name, "If-") || name == "Last-Event-ID" {
			parameters["header "+name] = value
		}
	}
	return op, parameters
}

const formType = "application/x-www-form-urlencoded"

// bodyType returns the media type of the operation's body.
func (op *operation) bodyType() string {
	if _, ok := op.RequestBody.Content[formType]; ok {
		return formType
	}
	return "application/json"
}

// bodyAsJSON returns a body in JSON, also if it is a form. It returns a form that has a fault
// unchanged.
func (op *operation) bodyAsJSON(body string) string {
	form, err := url.ParseQuery(body)
	if op.bodyType() != formType || body == "" || err != nil {
		return body
	}
	members := make(map[string]any)
	for name, values := range form {
		if members[name] = any(values); len(values) == 1 {
			members[name] = values[0]
		}
	}
	text, _ := json.Marshal(members)
	return string(text)
}

// checkRequest returns the faults of a request's parameters and body.
func (d *document) checkRequest(op *operation, parameters map[string]string, body string) (faults []string) {
	for name, text := range parameters {
		i := slices.IndexFunc(op.Parameters, func(p value) bool { return p.In+" "+p.Name == name })
		if i < 0 {
			faults = append(faults, name+" is not described")
		} else {
			faults = append(faults, d.checkText(op.Parameters[i].Schema, text, name)...)
		}
	}
	described, has := op.RequestBody.Content[op.bodyType()]
	body = op.bodyAsJSON(body)
	var v any
	switch err := json.Unmarshal([]byte(body), &v); {
	case body == "" && op.RequestBody.Required:
		return append(faults, "the body is missing")
	case body == "":
		return faults
	case !has:
		return append(faults, "the body is not described")
	case err != nil:
		return append(faults, err.Error())
	}
	return append(faults, d.check(described.Schema, v, "body").faults...)
}

// saw records facts that a real exchange has shown.
func (d *document) saw(at string, facts ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, fact := range facts {
		d.seen[fact] = at
	}
}

// observeRequest records a request that was accepted.
func (w *witness) observeRequest(op *operation, parameters map[string]string, body, at string) {
	w.t.Helper()
	for name := range parameters {
		w.doc.saw(at, op.name+" "+name)
	}
	if op.RequestBody.Content != nil {
		w.observeBody(op.RequestBody, op.name, op.bodyType(), "", op.bodyAsJSON(body), at)
	}
}

// observeAnswer checks and records an answer.
func (w *witness) observeAnswer(op *operation, r reply, at string) {
	w.t.Helper()
	key := op.name + " " + strconv.Itoa(r.status)
	response := op.Responses[strconv.Itoa(r.status)]
	kind, _, _ := mime.ParseMediaType(r.header.Get("Content-Type"))
	code := ""
	if r.status >= 400 {
		code = r.field("code")
	}
	w.observeBody(response, key, kind, code, r.body, at)
	for name, h := range response.Headers {
		name = http.CanonicalHeaderKey(name)
		if text := r.header.Get(name); text == "" {
			w.doc.saw(at, key+" without "+name)
		} else {
			w.report(w.doc.checkText(h.Schema, text, at+": "+name))
		}
	}
	for name, values := range r.header {
		if !slices.Contains(commonHeaders, name) {
			w.doc.saw(at, key+" header "+name)
		}
		if len(values) > 1 {
			w.t.Errorf("%s: %s appears twice: %q", at, name, values)
		}
	}
}

// observeBody checks and records the body of an answer or of an accepted request.
func (w *witness) observeBody(m message, key, kind, code, text, at string) {
	w.t.Helper()
	if text == "" {
		w.doc.saw(at, key+" without body")
		return
	}
	key += " body " + kind
	w.doc.saw(at+": "+text, key, key+" code "+code)
	var body any = text
	if strings.HasSuffix(kind, "json") || kind == formType {
		if err := json.Unmarshal([]byte(text), &body); err != nil {
			w.t.Fatalf("%s: %v: %s", at, err, text)
		}
	}
	f := w.doc.check(m.Content[kind].Schema, body, at)
	w.report(f.faults)
	w.doc.saw(at, f.absent...)
	for i, example := range m.Content[kind].examples() {
		part, isText := example.(string)
		if isText && strings.Contains(text, part) || reflect.DeepEqual(withoutTokens(body), withoutTokens(example)) {
			w.doc.saw(at, fmt.Sprint(key, " example ", i))
		}
	}
}

func (w *witness) report(faults []string) {
	w.t.Helper()
	for _, fault := range faults {
		w.t.Error(fault)
	}
}

// withoutTokens returns a body without its tokens, keys, links, secrets and one-time codes,
// which are always new.
func withoutTokens(v any) any {
	if list, ok := v.([]any); ok {
		list = slices.Clone(list)
		for i := range list {
			list[i] = withoutTokens(list[i])
		}
		return list
	}
	if o, ok := v.(object); ok {
		o = maps.Clone(o)
		delete(o, "access_token")
		delete(o, "refresh_token")
		delete(o, "url")
		delete(o, "key")
		delete(o, "prefix")
		for _, name := range []string{"secret", "uri", "qr", "mfa_token", "otp", "recovery_codes"} {
			delete(o, name)
		}
		if code, _ := o["code"].(string); strings.HasPrefix(code, "u") && strings.Index(code, "_") == 2 {
			delete(o, "code")
		}
		return o
	}
	return v
}

// facts returns all facts that real exchanges must show, and no others: each parameter,
// header, body, error code and example, and the absence of each optional header, body and
// member.
func (d *document) facts() map[string]bool {
	facts := make(map[string]bool)
	add := func(parts ...any) { facts[fmt.Sprint(parts...)] = true }
	for at, v := range d.values() {
		add(at)
		for i := range v.examples() {
			if strings.Contains(at, " body ") {
				add(at, " example ", i)
			}
		}
	}
	for at, s := range d.schemas() {
		properties, _ := s["properties"].(object)
		required, _ := s["required"].([]any)
		for name := range properties {
			if !slices.Contains(required, any(name)) {
				add(at, ".", name)
			}
		}
	}
	addMessage := func(key string, m message) {
		for name, h := range m.Headers {
			if !h.Required {
				add(key, " without ", http.CanonicalHeaderKey(name))
			}
		}
		codes := m.codes()
		if codes == nil {
			codes = []string{""}
		}
		for kind := range m.Content {
			for _, code := range codes {
				add(key, " body ", kind, " code ", code)
			}
		}
	}
	for _, op := range append(d.operations, d.other) {
		addMessage(op.name, op.RequestBody)
		if op.RequestBody.Content != nil && !op.RequestBody.Required {
			add(op.name, " without body")
		}
		for status, response := range op.Responses {
			addMessage(op.name+" "+status, response)
			if response.Content == nil {
				add(op.name, " ", status, " without body")
			}
		}
	}
	return facts
}

// reportUndescribed fails the test if an exchange has shown another fact.
func (d *document) reportUndescribed(t *testing.T) {
	t.Helper()
	facts := d.facts()
	for fact, at := range d.seen {
		if !facts[fact] {
			t.Errorf("%q is not described: %s", fact, at)
		}
	}
}

// example returns the i-th example of an operation's body.
func (d *document) example(t testing.TB, name string, i int) string {
	t.Helper()
	at := slices.IndexFunc(d.operations, func(op *operation) bool { return op.name == name })
	text, err := json.Marshal(d.operations[at].RequestBody.Content["application/json"].examples()[i])
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Every route gives every answer that the document describes, and no other.
func TestEveryRouteAnswersAsDocumented(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	asUsual := func(*settings) {}
	t.Run("scenes", func(t *testing.T) {
		for _, scene := range []struct {
			name     string
			play     func(*witness)
			settings func(*settings)
		}{
			{"success", goesWell, asUsual},
			{"tokens", refusesTokens, asUsual},
			{"bodies and parameters", refusesBodies, asUsual},
			{"rights", refusesOthers, asUsual},
			{"full directory", fullDirectory, func(c *settings) { c.directory = directoryFull }},
			{"no directory", noDirectory, func(c *settings) { c.directory = directorySelf }},
			{"closed registration", refusesRegistration, func(c *settings) { c.registration = registrationClosed }},
			{"conflicts", refusesConflicts, asUsual},
			{"recovery", recovers, asUsual},
			{"addresses", changesAddresses, func(c *settings) { c.mailOn = true }},
			{"invitations", invites, asUsual},
			{"approval", approves, func(c *settings) { c.registration = registrationApproval }},
			{"verified registration", verifies, verified},
			{"mailed invitations", sendsInvitations, withMail},
			{"registration by invitation", refusesUninvited, func(c *settings) { c.registration = registrationInvite }},
			{"mail", mailsLinks, withMail},
			{"console", usesConsole, func(c *settings) { c.console.on, c.issuer = true, strings.Repeat("i", 200) }},
			{"no APP_URL", refusesLinks, func(c *settings) { c.pages = pageURLs{} }},
			{"API keys", usesKeys, asUsual},
			{"proofs", refusesProofs, asUsual},
			{"second factor", secondFactor, asUsual},
			{"second factor of an address that is not verified", refusesUnverified, withMail},
			{"too many attempts", refusesMany, asUsual},
			{"overload", refusesBusy, asUsual},
			{"failing database", refusesWithoutDatabase, asUsual},
			{"adopted users", refusesReferenced, asUsual},
		} {
			for _, accept := range []string{"", "application/problem+json"} {
				t.Run(strings.TrimSpace(scene.name+" "+accept), func(t *testing.T) {
					t.Parallel()
					scene.play(&witness{newService(t, scene.settings), d, accept})
				})
			}
		}
	})
	d.reportUndescribed(t)
	if t.Failed() {
		return
	}
	for fact := range d.facts() {
		if d.seen[fact] == "" && !strings.Contains(fact, " 500 ") { // TestInternalError
			t.Errorf("%q was never seen", fact)
		}
	}
}

func goesWell(w *witness) {
	t, d := w.t, w.doc
	w.do("", "GET", "/api/test", "").want(t, 200, "")
	w.do("", "GET", "/openapi.json", "").want(t, 200, "")
	w.do("", "GET", "/", "").want(t, 200, "")
	w.do("", "GET", "/console", "").want(t, 404, "not_found")
	w.do("", "GET", "/healthz", "").want(t, 200, "")
	w.do("", "GET", "/readyz", "").want(t, 200, "")
	w.do("", "GET", "/api/nothing", "").want(t, 404, "not_found")
	w.do("", "POST", "/api/test", "").want(t, 405, "method_not_allowed")

	w.do("", "POST", "/api/register", d.example(t, "POST /api/register", 0)).want(t, 201, "")
	r := w.do("", "POST", "/api/login", d.example(t, "POST /api/login", 1), "User-Agent: curl/8.14.1").want(t, 200, "")
	ann, refresh := r.field("access_token"), r.field("refresh_token")
	w.do(ann, "GET", "/api/users/1/sessions", "").want(t, 200, "")
	w.do(ann, "GET", "/api/verify", "").want(t, 200, "")
	_, root := w.admin("root")

	w.do(root, "GET", "/metrics", "").want(t, 200, "")

	w.do(root, "GET", "/api/events?limit=2", "").want(t, 200, "")
	w.do(root, "GET", "/api/events?after=1&user=1&type=login", "").want(t, 200, "")
	if err := w.store.write(t.Context(), event{kind: eventsTrimmed, at: 1, changes: "until=1"}.statement()); err != nil {
		t.Fatal(err)
	}
	w.do(root, "GET", "/api/events", "").want(t, 200, "")
	w.followEvents(root)

	w.do(ann, "GET", "/api/users", "").want(t, 200, "")
	w.do(ann, "GET", "/api/users?limit=1", "").want(t, 200, "")
	w.do(ann, "GET", "/api/users?limit=1&after=1", "").want(t, 200, "")
	w.do(ann, "GET", "/api/users?q=an", "").want(t, 200, "")
	w.do(root, "GET", "/api/users?role=admin&disabled=false", "").want(t, 200, "")
	w.do(root, "POST", "/api/users", d.example(t, "POST /api/users", 0)).want(t, 201, "")
	w.do(root, "POST", "/api/users", `{"username":"carl","email":"carl@example.com","password":"`+goodPassword+`"}`).want(t, 201, "")

	w.do(ann, "GET", "/api/users/2", "").want(t, 200, "")
	r = w.do(ann, "GET", "/api/users/me", "").want(t, 200, "")
	tag := r.header.Get("ETag")
	w.do(ann, "GET", "/api/users/1", "", "If-None-Match: "+tag).want(t, 304, "")
	w.do(ann, "PUT", "/api/users/1", d.example(t, "PUT /api/users/{id}", 0), "If-Match: "+tag).want(t, 200, "")
	for _, method := range []string{"PUT", "PATCH", "DELETE"} {
		w.do(ann, method, "/api/users/1", "{}", "If-Match: "+tag).want(t, 412, "version_mismatch")
	}
	w.do(ann, "PATCH", "/api/users/1", d.example(t, "PATCH /api/users/{id}", 0), "If-Match: *").want(t, 200, "")

	r = w.do(refresh, "POST", "/api/refresh", "").want(t, 200, "")
	r = w.do(r.field("refresh_token"), "POST", "/api/refresh", "{}").want(t, 200, "")
	ann = r.field("access_token")
	w.do("", "POST", "/api/refresh", `{"refresh_token":"`+r.field("refresh_token")+`"}`).want(t, 200, "")

	// With a token from a refresh, the current password is required.
	w.do(ann, "PATCH", "/api/users/1", d.example(t, "PATCH /api/users/{id}", 1)).want(t, 200, "")
	w.do(ann, "PUT", "/api/users/1", `{"password":"correct horse battery","current_password":"staple and paper clip"}`).want(t, 200, "")
	w.do(ann, "POST", "/api/logout", "").want(t, 204, "")
	for _, query := range []string{"", "?all=false", "?all=true"} {
		ann = w.login("annette")
		w.do(ann, "POST", "/api/logout"+query, d.example(t, "POST /api/logout", 0)).want(t, 204, "")
	}
	w.do(root, "DELETE", "/api/users/1/sessions", "").want(t, 204, "")
	ann = w.login("annette")
	w.do(ann, "DELETE", "/api/users/1/sessions/999", `{"current_password":"correct horse battery"}`).want(t, 404, "session_not_found")
	w.do(ann, "DELETE", "/api/users/1/sessions", `{"current_password":"correct horse battery"}`).want(t, 204, "")
	r = w.do("", "POST", "/api/login", `{"username":"annette","password":"`+goodPassword+`"}`).want(t, 200, "")
	ann = r.field("access_token")
	sid := w.do(ann, "GET", "/api/users/me/sessions", "").want(t, 200, "").list(t, "id")
	w.do(root, "DELETE", "/api/users/1/sessions/"+sid[0], "").want(t, 204, "")
	ann = w.login("annette")
	sid = w.do(ann, "GET", "/api/users/me/sessions", "").want(t, 200, "").list(t, "id")
	w.do(ann, "DELETE", "/api/users/1/sessions/"+sid[0], `{"current_password":"correct horse battery"}`).want(t, 204, "")
	ann = w.login("annette")
	w.do(root, "DELETE", "/api/users/3", "", "If-Match: *").want(t, 200, "")
	w.do(root, "DELETE", "/api/users/4", "{}").want(t, 200, "")
	w.do(ann, "DELETE", "/api/users/me", d.example(t, "DELETE /api/users/{id}", 0)).want(t, 200, "")

	w.register("ann")
	w.do("", "POST", "/api/login", d.example(t, "POST /api/login", 0)).want(t, 200, "")
}

// followEvents reads the beginning of a stream: its position and one event.
func (w *witness) followEvents(token string) {
	const at = "a stream of events"
	headers := []string{"Last-Event-ID: 1"}
	op, parameters := w.doc.find("GET", "/api/events", headers)
	w.report(w.doc.checkRequest(op, parameters, ""))
	w.observeRequest(op, parameters, "", at)
	stream := w.follow(token, "", headers...)
	position, first := stream.next(), stream.next()
	stream.leave()
	w.observeAnswer(op, reply{200, stream.header, position + "\n" + first + "\n"}, at)
	_, data, _ := strings.Cut(first, "data: ")
	var e any
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		w.t.Fatalf("%v: %s", err, first)
	}
	w.report(w.doc.check(w.doc.Components.Schemas["Event"], e, at).faults)
}

// paths calls f with the method and path of each route. The caller is the {id}.
func (w *witness) paths(f func(rt route, method, path string)) {
	for _, rt := range w.routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		f(rt, method, strings.NewReplacer("{id}", "me", "{sid}", "999", "{invitation}", "999", "{key}", "999", "{mail}", "999").Replace(path))
	}
}

func refusesTokens(w *witness) {
	w.register("ann")
	expiredKey, _ := w.keyOf(1, readScope, time.Hour)
	readKey, _ := w.keyOf(1, readScope, 0)
	verifyKey, _ := w.keyOf(1, verifyScope, 0)
	old, oldRefresh := w.pair("ann")
	w.clock.add(720 * time.Hour)
	ended, endedRefresh := w.pair("ann")
	w.service.do(ended, "POST", "/api/logout", "").want(w.t, 204, "")
	w.paths(func(rt route, method, path string) {
		expired, over := old, ended
		if rt.pattern == "POST /api/refresh" {
			expired, over = oldRefresh, endedRefresh
		} else if rt.access == anyone {
			return
		}
		w.do("", method, path, "").want(w.t, 401, "missing_token")
		w.do("x", method, path, "").want(w.t, 401, "invalid_token")
		w.do(expired, method, path, "").want(w.t, 401, "expired_token")
		w.do(over, method, path, "").want(w.t, 401, "session_ended")
		if rt.access != anyone {
			w.do(expiredKey, method, path, "").want(w.t, 401, "expired_key")
		}
		if rt.access != anyone && !slices.Contains(rt.scopes, readScope) {
			w.do(readKey, method, path, "").want(w.t, 403, "insufficient_scope")
		} else if rt.access != anyone && !slices.Contains(rt.scopes, verifyScope) {
			w.do(verifyKey, method, path, "").want(w.t, 403, "insufficient_scope")
		}
	})
	_, used := w.pair("ann")
	w.do(used, "POST", "/api/refresh", "").want(w.t, 200, "")
	w.clock.add(time.Minute)
	w.do(used, "POST", "/api/refresh", "").want(w.t, 401, "reused_token")
	w.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(w.t, 401, "invalid_credentials")
}

func refusesBodies(w *witness) {
	w.register("ann")
	_, root := w.admin("root")
	w.paths(func(rt route, method, path string) {
		request, has := bodies[rt.pattern]
		if !has {
			return
		}
		w.do(root, method, path, "{").want(w.t, 400, "malformed_body")
		w.do(root, method, path, `{"colour":"red"}`).want(w.t, 400, "unknown_member")
		w.do(root, method, path, strings.Repeat(" ", 64<<10+1)).want(w.t, 413, "body_too_large")
		w.do(root, method, path, "{}", "Content-Type: text/plain").want(w.t, 415, "unsupported_media_type")
		if names := memberNames(request); len(names) > 0 {
			w.do(root, method, path, fmt.Sprintf(`{%[1]q:"a",%[1]q:"b"}`, names[0])).want(w.t, 400, "duplicate_member")
			w.do(root, method, path, fmt.Sprintf(`{%q:1}`, names[0])).want(w.t, 400, "wrong_type")
		}
		switch rt.pattern {
		case "POST /api/register", "POST /api/users":
			w.do(root, method, path, "{}").want(w.t, 400, "missing_fields")
			fallthrough
		case "PUT /api/users/{id}", "PATCH /api/users/{id}":
			w.do(root, method, path, `{"username":"new","email":"x","password":"short"}`).want(w.t, 400, "invalid_fields")
			for name, value := range map[string]string{"username": "a b", "email": "x", "password": "short"} {
				fields := map[string]string{"username": "new", "email": "new@example.com", "password": goodPassword}
				fields[name] = value
				text, _ := json.Marshal(fields)
				w.do(root, method, path, string(text)).want(w.t, 400, "invalid_fields")
			}
			w.do(root, method, path, `{"username":"new","email":"new@example.com","password":"`+strings.Repeat("x", validate.MaxPassword+1)+`"}`).want(w.t, 400, "invalid_fields")
			if method != "POST" {
				w.do(root, method, path, `{"role":"root"}`).want(w.t, 400, "invalid_fields")
			}
			w.do(root, method, path, `{"username":"ANN","email":"new@example.com","password":"`+goodPassword+`"}`).want(w.t, 400, "username_taken")
			w.do(root, method, path, `{"username":"new","email":"ANN@example.com","password":"`+goodPassword+`"}`).want(w.t, 400, "email_taken")
		case "POST /api/password/reset", "POST /api/email/verify", "POST /api/email/change", "POST /api/email/undo":
			w.do("", method, path, "{}").want(w.t, 400, "missing_fields")
			w.do("", method, path, w.doc.example(w.t, rt.pattern, 0)).want(w.t, 400, "invalid_code")
		case "POST /api/invitations":
			w.do(root, method, path, `{"username":"ANN"}`).want(w.t, 400, "username_taken")
			w.do(root, method, path, `{"email":"ANN@example.com"}`).want(w.t, 400, "email_taken")
			for _, body := range []string{`{"uses":0}`, `{"uses":101}`, `{"email":"x"}`, `{"username":"a b"}`, `{"expires_in":3599}`, `{"expires_in":2592001}`} {
				w.do(root, method, path, body).want(w.t, 400, "invalid_fields")
			}
		case "POST /api/users/{id}/keys":
			w.do(root, method, path, `{"name":"job","scope":"read","expires_in":1}`).want(w.t, 400, "invalid_fields")
		case "POST /api/users/{id}/reset-link":
			w.do(root, method, path, `{"expires_in":604801}`).want(w.t, 400, "invalid_fields")
		case "POST /api/login":
			w.do(root, method, path, "{}").want(w.t, 400, "missing_fields")
			w.do(root, method, path, `{"username":"","password":"x"}`).want(w.t, 400, "missing_fields")
			w.do(root, method, path, `{"username":"x","password":""}`).want(w.t, 400, "missing_fields")
		}
	})
	w.do(root, "POST", "/api/users", `{"username":"new","email":"new@example.com","password":"`+goodPassword+`","role":"root"}`).want(w.t, 400, "invalid_fields")
	for _, query := range []string{"limit=0", "limit=1001", "after=-1", "q=ann"} {
		w.do(root, "GET", "/api/invitations?"+query, "").want(w.t, 400, "bad_parameter")
	}
	w.do(root, "POST", "/api/logout?all=maybe", "").want(w.t, 400, "bad_parameter")
	for _, query := range []string{"limit=0", "limit=1001", "limit=x", "after=-1", "after=x", "q=", "role=root", "disabled=maybe", "page=1"} {
		w.do(root, "GET", "/api/users?"+query, "").want(w.t, 400, "bad_parameter")
	}
	for _, query := range []string{"limit=0", "limit=1001", "after=-1", "user=0", "user=me", "type=x", "q=ann"} {
		w.do(root, "GET", "/api/events?"+query, "").want(w.t, 400, "bad_parameter")
	}
	for _, last := range []string{"x", "-1"} {
		w.do(root, "GET", "/api/events", "", "Accept: text/event-stream", "Last-Event-ID: "+last).want(w.t, 400, "bad_parameter")
	}
}

func refusesOthers(w *witness) {
	other, _ := w.register("ann")
	_, bob := w.member("bob")
	_, root := w.admin("root")
	w.paths(func(rt route, method, path string) {
		if rt.access == selfOrAdmin || rt.access == ownOrAdmin || rt.access == adminOnly || rt.access == resourceServer {
			w.do(bob, method, strings.Replace(path, "/api/users/me", other, 1), "").want(w.t, 403, "forbidden")
		}
		if !strings.Contains(rt.pattern, "{id}") {
			return
		}
		body := ""
		if bodies[rt.pattern] != nil {
			body = "{}"
		}
		if rt.pattern == "POST /api/users/{id}/keys" {
			body = w.doc.example(w.t, rt.pattern, 0)
		}
		w.do(root, method, strings.Replace(path, "me", "x", 1), body).want(w.t, 404, "user_not_found")
		if rt.access == selfOnly {
			w.do(root, method, strings.Replace(path, "me", "999", 1), body).want(w.t, 403, "forbidden")
			return
		}
		w.do(root, method, strings.Replace(path, "me", "999", 1), body).want(w.t, 404, "")
	})
	w.do(bob, "PUT", "/api/users/me", `{"role":"admin"}`).want(w.t, 403, "forbidden")
	w.do(bob, "PATCH", "/api/users/me", `{"disabled":true}`).want(w.t, 403, "forbidden")
	w.do(bob, "GET", "/api/users?role=admin", "").want(w.t, 403, "forbidden")
	w.do(root, "PATCH", other, `{"disabled":true}`).want(w.t, 200, "")
	w.do("", "POST", "/api/login", `{"username":"ann","password":"`+goodPassword+`"}`).want(w.t, 403, "user_disabled")
}

func refusesConflicts(w *witness) {
	_, root := w.admin("root")
	w.do(root, "PUT", "/api/users/me", `{"role":"member"}`).want(w.t, 409, "last_admin")
	w.do(root, "PATCH", "/api/users/me", `{"disabled":true}`).want(w.t, 409, "last_admin")
	w.do(root, "DELETE", "/api/users/me", "").want(w.t, 409, "last_admin")
}

func refusesProofs(w *witness) {
	w.register("ann")
	w.admin("root")
	for name, acts := range map[string][][3]string{
		"ann": {
			{"PUT", "/api/users/me", `"password":"another one",`},
			{"PATCH", "/api/users/me", `"email":"x@example.com",`},
			{"DELETE", "/api/users/me"},
			{"POST", "/api/logout?all=true"},
			{"DELETE", "/api/users/me/sessions"},
			{"DELETE", "/api/users/me/sessions/999"},
			{"POST", "/api/users/me/totp"}, {"DELETE", "/api/users/me/totp"}, {"POST", "/api/users/me/recovery-codes"},
		},
		"root": {
			{"POST", "/api/users", `"username":"eve","email":"eve@example.com","password":"another one","role":"admin",`},
			{"POST", "/api/users/1/reset-link"},
			{"POST", "/api/users/1/keys", `"name":"job","scope":"read","expires_in":3600,`},
			{"POST", "/api/invitations"},
			{"POST", "/api/invitations/999/send"},
		},
	} {
		_, refresh := w.pair(name)
		stale := w.do(refresh, "POST", "/api/refresh", "").want(w.t, 200, "").field("access_token")
		for _, act := range acts {
			w.do(stale, act[0], act[1], "{"+strings.TrimSuffix(act[2], ",")+"}").want(w.t, 401, "fresh_login_required")
			w.do(stale, act[0], act[1], "{"+act[2]+`"current_password":"wrong"}`).want(w.t, 401, "wrong_password")
			w.clock.add(time.Hour) // a wrong password delays the next one
			_, refresh = w.pair(name)
			stale = w.do(refresh, "POST", "/api/refresh", "").want(w.t, 200, "").field("access_token")
		}
	}
}

// proofs are requests that check a current_password.
var proofs = [][3]string{
	{"PUT", "/api/users/me"}, {"PATCH", "/api/users/me"}, {"DELETE", "/api/users/me"},
	{"POST", "/api/logout"}, {"DELETE", "/api/users/me/sessions"}, {"DELETE", "/api/users/me/sessions/999"},
	{"POST", "/api/users", `"username":"eve","email":"eve@example.com","password":"another one",`},
	{"POST", "/api/users/me/reset-link"}, {"POST", "/api/invitations"}, {"POST", "/api/invitations/999/send"},
	{"POST", "/api/users/me/keys", `"name":"job","scope":"read","expires_in":3600,`},
	{"POST", "/api/users/me/totp"}, {"DELETE", "/api/users/me/totp"}, {"POST", "/api/users/me/recovery-codes"},
}

func refusesMany(w *witness) {
	w.register("ann")
	_, root := w.admin("root")
	for range freeFailures {
		w.service.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`)
	}
	for _, allowance := range []limit{registrations, refreshes, passwords, malformed} {
		a := &w.limiter.allowances[allowance]
		for range a.Burst {
			a.Take(w.limiter.seed.Key(clientaddr.Network("127.0.0.1")), w.mono())
		}
	}
	w.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(w.t, 429, "too_many_requests")
	w.do("", "POST", "/api/register", "").want(w.t, 429, "too_many_requests")
	w.do("", "POST", "/api/refresh", "").want(w.t, 429, "too_many_requests")
	w.do("", "POST", "/api/password/reset", "").want(w.t, 429, "too_many_requests")
	w.do("", "POST", "/api/password/forgot", "").want(w.t, 429, "too_many_requests")
	for _, route := range []string{"verify", "change", "undo"} {
		w.do("", "POST", "/api/email/"+route, "").want(w.t, 429, "too_many_requests")
	}
	w.do("", "POST", "/api/login/factor", "").want(w.t, 429, "too_many_requests")
	w.do(root, "POST", "/api/users/me/totp/confirm", "").want(w.t, 429, "too_many_requests")
	for _, p := range proofs {
		w.do(root, p[0], p[1], "{"+p[2]+`"current_password":"wrong"}`).want(w.t, 429, "too_many_requests")
	}
}

func refusesBusy(w *witness) {
	path, root := w.admin("root")
	code := w.resetLink(root, path)
	defer w.occupyHasher()()
	defer w.crowdHasher("127.0.0.0/24")()
	w.do("", "POST", "/api/login", `{"username":"ann","password":"x"}`).want(w.t, 503, "busy")
	w.do("", "POST", "/api/register", w.doc.example(w.t, "POST /api/register", 0)).want(w.t, 503, "busy")
	w.do(root, "POST", "/api/users", w.doc.example(w.t, "POST /api/users", 0)).want(w.t, 503, "busy")
	w.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":"another long one"}`, code)).want(w.t, 503, "busy")
	for _, p := range proofs {
		w.do(root, p[0], p[1], "{"+p[2]+`"current_password":"x"}`).want(w.t, 503, "busy")
	}
	w.bodies = reqbody.NewReader(maxBody, smallBody, 0)
	w.do("", "POST", "/api/refresh", sized(smallBody+1)).want(w.t, 503, "busy")
	w.do(root, "POST", "/api/logout", sized(smallBody+1)).want(w.t, 503, "busy")
	w.do(root, "POST", "/api/introspect", sized(smallBody+1), "Content-Type: "+formType).want(w.t, 503, "busy")
	w.do("", "POST", "/api/password/forgot", sized(smallBody+1)).want(w.t, 503, "busy")
	for _, route := range []string{"verify", "change", "undo"} {
		w.do("", "POST", "/api/email/"+route, sized(smallBody+1)).want(w.t, 503, "busy")
	}
	w.feed = sse.New(0)
	w.do(root, "GET", "/api/events", "", "Accept: text/event-stream").want(w.t, 503, "busy")
}

// Without a database, every route that needs one answers 503, and no other does.
func refusesWithoutDatabase(w *witness) {
	w.register("ann")
	ann, refresh := w.pair("ann")
	w.service.do(refresh, "POST", "/api/refresh", "").want(w.t, 200, "") // so that its session must be read
	w.keepLog()
	if err := w.store.readers.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.paths(func(rt route, method, path string) {
		token, body := ann, ""
		if slices.Contains(linkPages, path) {
			w.do("", method, path, "").want(w.t, 200, "")
			return
		}
		switch rt.pattern {
		case "GET /console":
			w.do("", method, path, "").want(w.t, 404, "not_found")
			return
		case "GET /", "GET /api/test", "GET /openapi.json", "GET /healthz":
			w.do("", method, path, "").want(w.t, 200, "")
			return
		case "POST /api/password/forgot":
			w.do("", method, path, w.doc.example(w.t, rt.pattern, 0)).want(w.t, 403, "mail_off")
			return
		case "POST /api/refresh":
			token = refresh
		case "POST /api/login", "POST /api/login/factor", "POST /api/register", "POST /api/password/reset", "POST /api/email/verify", "POST /api/email/change", "POST /api/email/undo":
			body = w.doc.example(w.t, rt.pattern, 0)
		}
		w.do(token, method, path, body).want(w.t, 503, "unavailable")
	})
}

// usesKeys is the life of an API key.
func usesKeys(w *witness) {
	t, d := w.t, w.doc
	path, _ := w.register("ann")
	_, root := w.admin("root")
	ann := w.login("ann")
	key := w.do(ann, "POST", path+"/keys", d.example(t, "POST /api/users/{id}/keys", 0)).want(t, 201, "").field("key")
	w.do(ann, "GET", path+"/keys", "").want(t, 200, "")
	verifier, _ := w.keyOf(2, verifyScope, 0)
	w.do(ann, "POST", path+"/keys", `{"name":"job","scope":"write","expires_in":3600,"current_password":"`+goodPassword+`"}`).want(t, 201, "")
	w.do(ann, "GET", path+"/keys", "").want(t, 200, "")
	w.do(key, "GET", "/api/verify", "").want(t, 200, "")
	if err := w.store.write(t.Context(), statement{Query: `UPDATE counter SET id = id`}); err != nil { // after the record of the use
		t.Fatal(err)
	}
	w.do(ann, "GET", path+"/keys", "").want(t, 200, "")
	w.do(root, "GET", "/api/users/2/keys", "").want(t, 200, "")

	form := "Content-Type: " + formType
	for _, token := range []string{ann, key, verifier} {
		w.do(root, "POST", "/api/introspect", "token="+token, form).want(t, 200, "")
	}
	w.do(verifier, "POST", "/api/introspect", "token=ud_0123456789ABCDEFGHIJKLMNOPQRST2UDHS0", form).want(t, 200, "")
	w.do(verifier, "POST", "/api/introspect", "token=x&token_type_hint=access_token", form).want(t, 200, "")
	w.do(verifier, "POST", "/api/introspect", "token=%", form).want(t, 400, "malformed_body")
	w.do(verifier, "POST", "/api/introspect", "token=", form).want(t, 400, "missing_fields")
	w.do(verifier, "POST", "/api/introspect?token=x", "token=x", form).want(t, 400, "bad_parameter")
	w.do(verifier, "POST", "/api/introspect", "{}").want(t, 415, "unsupported_media_type")
	w.do(verifier, "POST", "/api/introspect", strings.Repeat("x", 64<<10+1), form).want(t, 413, "body_too_large")

	for range maxUserKeys - 2 {
		w.keyOf(1, readScope, time.Hour)
	}
	w.do(ann, "POST", path+"/keys", d.example(t, "POST /api/users/{id}/keys", 0)).want(t, 409, "too_many_keys")
	w.limiter.allowances[changes].Burst = 0
	w.do(ann, "POST", path+"/keys", d.example(t, "POST /api/users/{id}/keys", 0)).want(t, 429, "too_many_requests")
	w.do(ann, "DELETE", path+"/keys/2", "").want(t, 429, "too_many_requests")
	w.do(root, "DELETE", path+"/keys/1", "").want(t, 204, "")
	w.do(root, "DELETE", path+"/keys/1", "").want(t, 404, "key_not_found")
	w.do(root, "PATCH", path, `{"disabled":true}`).want(t, 200, "")
	w.do(root, "POST", path+"/keys", d.example(t, "POST /api/users/{id}/keys", 0)).want(t, 403, "user_disabled")
	if err := w.store.write(t.Context(), statement{Query: `UPDATE user SET disabled = 0, pending = 1 WHERE id = 1`}); err != nil {
		t.Fatal(err)
	}
	w.do(root, "POST", path+"/keys", d.example(t, "POST /api/users/{id}/keys", 0)).want(t, 403, "pending_approval")

	bot := userPath(w.addNamed("bot", member, true))
	w.do(root, "GET", bot, "").want(t, 200, "")
	for _, method := range []string{"PUT", "PATCH"} {
		w.do(root, method, bot, `{"disabled":false,"service":true}`).want(t, 200, "")
		w.do(root, method, bot, `{"email":"bot@example.com"}`).want(t, 409, "service_user")
	}
	w.do(root, "POST", bot+"/reset-link", "").want(t, 409, "service_user")
	w.mailOn = true
	w.do(root, "POST", bot+"/email/verify", "").want(t, 409, "service_user")
	adminKey, err := w.addKey(t.Context(), console, &apiKey{userID: 2, name: "ops", scope: adminScope}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.do(root, "GET", "/api/users/2/keys", "").want(t, 200, "")
	w.do(adminKey, "DELETE", bot, "").want(t, 200, "")
	w.do(root, "GET", "/api/events?type=key_created", "").want(t, 200, "")
}

// secondFactor is a user's way to and with a second factor.
func secondFactor(w *witness) {
	t := w.t
	const totp, codes = "/api/users/me/totp", "/api/users/me/recovery-codes"
	path, ann := w.member("ann")
	w.do(ann, "GET", totp, "").want(t, 200, "")
	w.do(ann, "GET", "/api/verify?factor=required", "").want(t, 403, "factor_required")
	w.do(ann, "GET", "/api/verify?factor=x", "").want(t, 400, "bad_parameter")
	w.do(ann, "DELETE", totp, "").want(t, 404, "factor_not_found")
	w.do(ann, "POST", codes, "").want(t, 404, "factor_not_found")
	w.do(ann, "POST", totp+"/confirm", `{"otp":"123456"}`).want(t, 404, "factor_not_pending")
	w.do(ann, "POST", totp+"/confirm", `{"otp":""}`).want(t, 400, "missing_fields")
	w.do("", "POST", "/api/login/factor", `{"mfa_token":"","otp":""}`).want(t, 400, "missing_fields")
	secret, err := otp.ParseSecret(w.do(ann, "POST", totp, "").want(t, 201, "").field("secret"))
	if err != nil {
		t.Fatal(err)
	}
	w.do(ann, "POST", totp+"/confirm", fmt.Sprintf(`{"otp":%q}`, w.wrongCode(secret))).want(t, 401, "wrong_otp")
	recovery := recoveryCodesOf(t, w.do(ann, "POST", totp+"/confirm", fmt.Sprintf(`{"otp":%q}`, w.code(secret))).want(t, 200, ""))
	w.do(ann, "GET", totp, "").want(t, 200, "")
	proven := w.loginWith("ann", recovery[0]).want(t, 200, "").field("access_token")
	w.do("", "POST", "/api/login/factor", w.doc.example(t, "POST /api/login/factor", 0)).want(t, 401, "invalid_mfa_token")

	_, root := w.admin("root")
	w.do(root, "POST", "/api/introspect", "token="+proven, "Content-Type: "+formType).want(t, 200, "")
	link := w.resetLink(root, path)
	password := fmt.Sprintf(`"current_password":%q`, goodPassword)
	mfa := w.loginWith("ann", "").field("mfa_token")
	asks := [][3]string{
		{"POST", "/api/login", fmt.Sprintf(`"username":"ann","password":%q`, goodPassword)},
		{"POST", "/api/login/factor", fmt.Sprintf(`"mfa_token":%q`, mfa)},
		{"POST", "/api/password/reset", fmt.Sprintf(`"code":%q,"password":"another long one"`, link)},
		{"POST", totp, password}, {"DELETE", totp, password}, {"POST", codes, password},
	}
	for _, ask := range asks {
		do := func(code string) reply { return w.do(ann, ask[0], ask[1], "{"+ask[2]+code+"}") }
		if ask[1] != "/api/login/factor" {
			do("").want(t, 401, "second_factor_required")
		}
		do(fmt.Sprintf(`,"otp":%q`, w.wrongCode(secret))).want(t, 401, "wrong_otp")
		do(fmt.Sprintf(`,"otp":%q`, w.code(secret))).want(t, 401, "otp_used")
		w.change(`UPDATE user_totp SET failures = 100`)
		do(fmt.Sprintf(`,"otp":%q`, w.code(secret))).want(t, 401, "recovery_code_required")
		w.change(`UPDATE user_totp SET failures = 0`)
		w.limiter = newLimiter()
	}
	w.change(`DELETE FROM user_recovery_code`)
	fresh := w.do("", "POST", "/api/login", fmt.Sprintf(`{"username":"ann","password":%q,"otp":%q}`, goodPassword, w.nextCode(secret))).want(t, 200, "").field("access_token")
	mfa = w.loginWith("ann", "").field("mfa_token")
	w.do("", "POST", "/api/login/factor", fmt.Sprintf(`{"mfa_token":%q,"otp":%q}`, mfa, w.nextCode(secret))).want(t, 200, "")
	w.do(fresh, "POST", codes, "").want(t, 200, "")
	w.do(fresh, "GET", "/api/verify?factor=required", "").want(t, 200, "")
	mfa = w.loginWith("ann", "").field("mfa_token")
	w.do("", "POST", "/api/login/factor", fmt.Sprintf(`{"mfa_token":%q,"otp":%q}`, mfa, w.nextCode(secret))).want(t, 200, "")
	for _, ask := range asks[3:] {
		w.do(fresh, ask[0], ask[1], fmt.Sprintf(`{%s,"otp":%q}`, password, w.nextCode(secret)))
		if ask[0] == "DELETE" {
			secret, _ = w.enrol(fresh)
		}
	}
	for _, ask := range asks[3:] {
		w.do(w.loginWith("ann", w.nextCode(secret)).field("access_token"), ask[0], ask[1], "{}")
		if ask[0] == "DELETE" {
			secret, _ = w.enrol(w.login("ann"))
		}
	}
	fresh = w.loginWith("ann", w.nextCode(secret)).field("access_token")
	w.do(fresh, "DELETE", totp, "").want(t, 204, "")
	fresh = w.login("ann")
	secret, _ = w.enrol(fresh)
	mfa = w.loginWith("ann", "").field("mfa_token")
	w.change(`UPDATE user SET disabled = 1 WHERE id = 1`)
	w.do("", "POST", "/api/login/factor", fmt.Sprintf(`{"mfa_token":%q,"otp":%q}`, mfa, w.nextCode(secret))).want(t, 403, "user_disabled")
}

// refusesUnverified is the attempt to add a factor without a verified address.
func refusesUnverified(w *witness) {
	_, ann := w.member("ann")
	w.do(ann, "POST", "/api/users/me/totp", "").want(w.t, 403, "email_not_verified")
}

// recovers is a user's way back by a link.
func recovers(w *witness) {
	t, d := w.t, w.doc
	path, _ := w.register("ann")
	_, root := w.admin("root")
	for _, page := range linkPages {
		w.do("", "GET", page, "").want(t, 200, "")
	}
	w.do("", "POST", "/api/password/forgot", d.example(t, "POST /api/password/forgot", 0)).want(t, 403, "mail_off")
	w.do(root, "POST", path+"/reset-link", d.example(t, "POST /api/users/{id}/reset-link", 0)).want(t, 201, "")
	code := linkCode(w.do(root, "POST", path+"/reset-link", "").want(t, 201, "").field("url"))
	w.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":"short"}`, code)).want(t, 400, "invalid_fields")
	w.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":%q}`, code, goodPassword)).want(t, 200, "")
	w.do("", "POST", "/api/password/reset", fmt.Sprintf(`{"code":%q,"password":%q}`, code, goodPassword)).want(t, 400, "invalid_code")
	w.do(root, "POST", path+"/reset-link", "{}").want(t, 201, "")
	w.do(root, "PATCH", path, `{"email_verified":true,"disabled":true}`).want(t, 200, "")
	w.do(root, "POST", path+"/reset-link", "").want(t, 403, "user_disabled")
	w.do(root, "GET", "/api/users?pending=false", "").want(t, 200, "")
}

// mailsLinks is a user's way back by a mail.
func mailsLinks(w *witness) {
	t, d := w.t, w.doc
	w.register("ann")
	w.do("", "POST", "/api/password/forgot", d.example(t, "POST /api/password/forgot", 0)).want(t, 202, "")
	w.do("", "POST", "/api/password/forgot", "{}").want(t, 400, "missing_fields")
	w.do("", "POST", "/api/password/forgot", fmt.Sprintf(`{"login":%q}`, strings.Repeat("a", maxLogin+1))).want(t, 400, "invalid_fields")
	_, root := w.admin("root")
	w.do(root, "GET", "/api/mail?limit=1&after=0&state=queued", "").want(t, 200, "")
	w.do("", "POST", "/api/password/forgot", `{"login":"ann@example.com"}`).want(t, 202, "")
	w.do(root, "GET", "/api/mail?limit=1", "").want(t, 200, "")
	w.do(root, "POST", "/api/mail/1/retry", "").want(t, 204, "")
	w.change(`UPDATE user_mail SET state = 'sent', email = 'ann@example.com', user_id = 1, closed_at = 2, last_error = 'no' WHERE id = 1`)
	w.do(root, "POST", "/api/mail/1/retry", "").want(t, 404, "mail_not_found")
	w.do(root, "GET", "/api/mail", "").want(t, 200, "")
	w.do(root, "GET", "/api/mail?state=new", "").want(t, 400, "bad_parameter")
	w.keepLog()
	w.store.filesLost.Store(true)
	w.do("", "POST", "/api/password/forgot", d.example(t, "POST /api/password/forgot", 0)).want(t, 503, "unavailable")
}

// usesConsole is the life of a session whose refresh token is in a cookie.
func usesConsole(w *witness) {
	t, d := w.t, w.doc
	w.do("", "GET", "/", "").want(t, 303, "")
	w.do("", "GET", "/console", "").want(t, 200, "")
	w.register("ann")
	here := "Origin: " + w.url
	login := d.example(t, "POST /api/login", 2)
	w.do("", "POST", "/api/login", login).want(t, 403, "cross_origin")
	r := w.do("", "POST", "/api/login", login, here).want(t, 200, "")
	w.do("", "POST", "/api/refresh", "", cookieOf(r)).want(t, 403, "cross_origin")
	r = w.do("", "POST", "/api/refresh", "", cookieOf(r), here).want(t, 200, "")
	w.do("", "POST", "/api/refresh", "", "Cookie: userd=x", here).want(t, 401, "invalid_token")
	for _, method := range []string{"PUT", "PATCH"} {
		body := fmt.Sprintf(`{"password":"another %s one","current_password":%q}`, method, goodPassword)
		r = w.do(r.field("access_token"), method, "/api/users/me", body, cookieOf(r), here).want(t, 200, "")
		body = fmt.Sprintf(`{"password":%q}`, goodPassword)
		r = w.do(r.field("access_token"), method, "/api/users/me", body, cookieOf(r), here).want(t, 200, "")
	}
	secret, _ := w.enrol(r.field("access_token"))
	mfa := w.loginWith("ann", "").field("mfa_token")
	login = fmt.Sprintf(`{"mfa_token":%q,"otp":%q,"cookie":true}`, mfa, w.nextCode(secret))
	w.do("", "POST", "/api/login/factor", login).want(t, 403, "cross_origin")
	r = w.do("", "POST", "/api/login/factor", login, here).want(t, 200, "")
	w.do(r.field("access_token"), "POST", "/api/logout", "", cookieOf(r), here).want(t, 204, "")
	path, _ := w.member("bob")
	for _, ends := range []string{path + "/sessions/{sid}", path + "/sessions", path} {
		r = w.loginForCookie("bob")
		sid, _, _ := strings.Cut(strings.TrimPrefix(cookieOf(r), "Cookie: userd="), ".")
		w.do(r.field("access_token"), "DELETE", strings.Replace(ends, "{sid}", sid, 1), "", cookieOf(r), here)
	}
	_, bob := w.member("bob")
	w.change(`UPDATE user SET username = 'bob' || hex(zeroblob(38)) WHERE username = 'bob'`) // its QR code does not fit
	w.do(bob, "POST", "/api/users/me/totp", "").want(t, 201, "")
}

// changesAddresses is how users verify and change their addresses.
func changesAddresses(w *witness) {
	t := w.t
	p := w.postbox()
	path, _ := w.register("ann")
	send := func(token, route, code string) reply {
		return w.do(token, "POST", "/api/email/"+route, fmt.Sprintf(`{"code":%q}`, code))
	}
	with := func(code, password string) string { return fmt.Sprintf(`{"code":%q,"password":%q}`, code, password) }
	w.do("", "POST", "/api/email/verify", with(p.only("ann@example.com", "Confirm").code, goodPassword)).want(t, 200, "")
	ann := w.login("ann")
	w.do(ann, "POST", path+"/email/verify", "").want(t, 409, "already_verified")
	w.do(ann, "PUT", path, `{"email":"ann@example.org","pending_email":1}`).want(t, 200, "")
	w.do(ann, "GET", path, "").want(t, 200, "")
	change := p.only("ann@example.org", "new e-mail address").code
	_, root := w.admin("root")
	move := func(email string) {
		w.service.do(root, "PUT", "/api/users/me", fmt.Sprintf(`{"email":%q}`, email)).want(t, 200, "")
	}
	move("ann@example.org")
	send("", "change", change).want(t, 400, "email_taken")
	move("root@example.com")
	send("", "change", change).want(t, 200, "")
	undo := p.only("ann@example.com", "has changed").code
	move("ann@example.com")
	w.service.do(root, "PUT", "/api/users/me", `{"email_verified":true}`).want(t, 200, "")
	send("", "undo", undo).want(t, 400, "email_taken")
	w.service.do(root, "PUT", "/api/users/me", `{"email_verified":false}`).want(t, 200, "")
	move("root@example.com")
	send("", "undo", undo).want(t, 200, "")
	w.do(root, "GET", "/api/events?after=2", "").want(t, 200, "")

	p.deliver()
	_, carl := w.member("carl")
	send(carl, "verify", p.only("carl@example.com", "Confirm").code).want(t, 200, "")
	path, _ = w.register("bob")
	verify := p.only("bob@example.com", "Confirm").code
	ended, expired := w.login("bob"), w.login("bob")
	w.service.do(ended, "POST", "/api/logout", "").want(t, 204, "")
	w.clock.add(w.accessTTL)
	send("", "verify", verify).want(t, 401, "missing_token")
	send("x", "verify", verify).want(t, 401, "invalid_token")
	send(expired, "verify", verify).want(t, 401, "expired_token")
	w.do("", "POST", "/api/email/verify", with(verify, "wrong")).want(t, 401, "invalid_credentials")
	w.clock.set(w.wall().Add(-w.accessTTL))
	send(ended, "verify", verify).want(t, 401, "session_ended")
	root, bob := w.login("root"), w.login("bob")
	w.do(bob, "POST", path+"/email/verify", "").want(t, 202, "")
	w.service.do(root, "PATCH", path, `{"disabled":true}`).want(t, 200, "")
	w.do(root, "POST", path+"/email/verify", "").want(t, 403, "user_disabled")
	w.service.do(root, "PATCH", path, `{"disabled":false}`).want(t, 200, "")
	w.mailOn = false
	w.do(root, "POST", path+"/email/verify", "").want(t, 403, "mail_off")
	for range w.limiter.allowances[userChanges].Burst {
		w.limiter.allowances[userChanges].Take(w.limiter.seed.Key("4"), w.mono())
	}
	w.do(w.login("bob"), "POST", path+"/email/verify", "").want(t, 429, "too_many_requests")
}

// invites is how an admin invites users.
func invites(w *witness) {
	t, d := w.t, w.doc
	_, root := w.admin("root")
	code := linkCode(w.do(root, "POST", "/api/invitations", d.example(t, "POST /api/invitations", 0)).want(t, 201, "").field("url"))
	w.do(root, "POST", "/api/invitations", `{"email":"ann@example.com"}`).want(t, 201, "")
	w.do(root, "GET", "/api/invitations", "").want(t, 200, "")
	w.do(root, "GET", "/api/invitations?limit=1", "").want(t, 200, "")
	w.do(root, "GET", "/api/invitations?limit=1&after=1", "").want(t, 200, "")
	w.do(root, "POST", "/api/invitations", `{"username":"carl","expires_in":3600,"current_password":"`+goodPassword+`"}`).want(t, 201, "")
	w.do(root, "POST", "/api/invitations", "").want(t, 201, "")
	if err := w.store.addInvitation(t.Context(), console, &invitation{role: admin, usesLeft: 1, createdAt: w.wall().Unix(), expiresAt: w.wall().Unix() + 60}, []byte("x")); err != nil {
		t.Fatal(err)
	}
	w.do(root, "GET", "/api/invitations?after=2", "").want(t, 200, "")
	w.do("", "POST", "/api/register", fmt.Sprintf(`{"username":"bob","email":"bob@example.com","password":%q,"invitation":%q}`, goodPassword, code)).want(t, 201, "")
	w.do("", "POST", "/api/register", fmt.Sprintf(`{"username":"eve","email":"eve@example.com","password":%q,"invitation":%q}`, goodPassword, newCode(inviteCode))).want(t, 400, "invalid_code")
	w.do(root, "DELETE", "/api/invitations/1", "").want(t, 204, "")
	w.do(root, "DELETE", "/api/invitations/1", "").want(t, 404, "invitation_not_found")
}

// verifies is how a user registers whose address is verified first.
func verifies(w *witness) {
	t, p := w.t, w.postbox()
	w.do("", "POST", "/api/register", w.doc.example(t, "POST /api/register", 0)).want(t, 202, "")
	w.do("", "POST", "/api/register", `{"username":"ann","email":"bob@example.com","password":"`+goodPassword+`"}`).want(t, 202, "")
	w.do("", "POST", "/api/register", `{"username":"cas","email":"cas@example.com","password":"`+goodPassword+`"}`).want(t, 202, "")
	var codes []string
	for _, m := range p.deliver() {
		codes = append(codes, m.code)
	}
	confirm := func(w *witness, code, members string) reply {
		t.Helper()
		return w.do("", "POST", "/api/email/verify", fmt.Sprintf(`{"code":%q%s}`, code, members))
	}
	password := `,"password":"` + goodPassword + `"`
	confirm(w, codes[0], "").want(t, 401, "invalid_credentials")
	confirm(w, codes[0], `,"password":"wrong"`).want(t, 401, "invalid_credentials")
	confirm(w, codes[0], password).want(t, 200, "")
	confirm(w, codes[0], password).want(t, 400, "invalid_code")
	confirm(w, codes[1], password).want(t, 400, "username_taken")
	confirm(w, codes[1], password+`,"username":"a b"`).want(t, 400, "invalid_fields")
	for mode, code := range map[registrationMode]string{registrationClosed: "registration_closed", registrationInvite: "invitation_required"} {
		later := newServiceOn(t, w.path, func(c *settings) { c.registration = mode })
		confirm(&witness{later, w.doc, w.accept}, codes[1], password).want(t, 403, code)
	}
	confirm(w, codes[1], password+`,"username":"bob"`).want(t, 200, "")
	if err := w.store.addUser(t.Context(), console, &user{username: "other", email: "cas@example.com", role: member}, "", 1); err != nil {
		t.Fatal(err)
	}
	confirm(w, codes[2], password).want(t, 400, "email_taken")
}

// sendsInvitations is how an admin has an invitation mailed.
func sendsInvitations(w *witness) {
	t := w.t
	_, root := w.admin("root")
	w.do(root, "POST", "/api/invitations", `{"email":"ann@example.com"}`).want(t, 201, "")
	w.do(root, "POST", "/api/invitations/1/send", "").want(t, 202, "")
	w.do(root, "POST", "/api/invitations/1/send", w.doc.example(t, "POST /api/invitations/{invitation}/send", 0)).want(t, 202, "")
	w.do(root, "POST", "/api/invitations/99/send", "{}").want(t, 404, "invitation_not_found")
	w.do(root, "POST", "/api/invitations", "").want(t, 201, "")
	w.do(root, "POST", "/api/invitations/2/send", "").want(t, 409, "invitation_not_sendable")
	off := &witness{newServiceOn(t, w.path), w.doc, w.accept}
	off.do(root, "POST", "/api/invitations/1/send", "").want(t, 403, "mail_off")
}

// approves is how an admin lets a user in.
func approves(w *witness) {
	t := w.t
	ann := w.do("", "POST", "/api/register", w.doc.example(t, "POST /api/register", 0)).want(t, 201, "").header.Get("Location")
	_, root := w.admin("root")
	w.do(root, "POST", ann+"/approve", "").want(t, 200, "")
	path := w.do("", "POST", "/api/register", `{"username":"bob","email":"bob@example.com","password":"`+goodPassword+`"}`).want(t, 201, "").header.Get("Location")
	w.do("", "POST", "/api/login", `{"username":"bob","password":"`+goodPassword+`"}`).want(t, 403, "pending_approval")
	w.do(root, "GET", "/api/users?pending=true", "").want(t, 200, "")
	w.do(root, "GET", path, "").want(t, 200, "")
	w.do(root, "PUT", path, `{"role":"member","pending":true,"email_verified_at":null,"email_verified":true}`).want(t, 200, "")
	w.do(root, "POST", path+"/approve", "").want(t, 200, "")
	w.do(root, "DELETE", path, "").want(t, 200, "")
}

func refusesUninvited(w *witness) {
	w.do("", "POST", "/api/register", w.doc.example(w.t, "POST /api/register", 0)).want(w.t, 403, "invitation_required")
}

func refusesLinks(w *witness) {
	_, root := w.admin("root")
	w.do(root, "POST", "/api/users/me/reset-link", "").want(w.t, 409, "no_app_url")
	w.do(root, "POST", "/api/invitations", "").want(w.t, 409, "no_app_url")
}

func fullDirectory(w *witness) {
	_, ann := w.member("ann")
	w.admin("root")
	w.do(ann, "GET", "/api/users/2", "").want(w.t, 200, "")
	w.do(ann, "GET", "/api/users", "").want(w.t, 200, "")
}

func noDirectory(w *witness) {
	_, ann := w.member("ann")
	w.do(ann, "GET", "/api/users/2", "").want(w.t, 403, "forbidden")
	w.do(ann, "GET", "/api/users", "").want(w.t, 200, "")
}

func refusesRegistration(w *witness) {
	w.do("", "POST", "/api/register", w.doc.example(w.t, "POST /api/register", 0)).want(w.t, 403, "registration_closed")
}

// Another table refers to one user, and another user has no name.
func refusesReferenced(w *witness) {
	t := w.t.(*testing.T)
	path := flaskDatabase(t,
		`CREATE TABLE bill (id INTEGER PRIMARY KEY, username VARCHAR(80) NOT NULL REFERENCES user (username))`,
		`INSERT INTO bill (username) VALUES ('ann')`,
		`UPDATE user SET username = '' WHERE id = 2`)
	(&shell{t, path}).run(0, "", "adopt")
	w.service = newServiceOn(t, path)
	nameless := w.do("", "POST", "/api/login", `{"username":"not an address","password":"`+goodPassword+`"}`).want(t, 200, "").field("access_token")
	w.do(nameless, "GET", "/api/verify", "").want(t, 403, "forbidden")
	r := w.do("", "POST", "/api/login", `{"username":"ann","password":"short"}`).want(t, 200, "")
	ann := r.field("access_token")
	w.do(ann, "GET", "/api/users/me", "").want(t, 200, "")
	w.do(ann, "PUT", "/api/users/me", `{"username":"anne"}`).want(t, 409, "user_referenced")
	w.do(ann, "PATCH", "/api/users/me", `{"username":"anne"}`).want(t, 409, "user_referenced")
	w.do(ann, "DELETE", "/api/users/me", "").want(t, 409, "user_referenced")
}

// The answer 500 is the same for every route.
func TestInternalError(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	internal := d.Components.Responses["InternalError"]
	panics := &operation{name: "GET /panic", Responses: map[string]message{"500": internal}}
	for _, accept := range []string{"application/json", "application/problem+json"} {
		w := &witness{newService(t), d, accept}
		w.keepLog()
		w.handle("GET /panic", func(*exchange) error { panic("oh no") })
		r := w.service.do("", "GET", "/panic", "", "Accept: "+accept).want(t, 500, "internal")
		w.observeAnswer(panics, r, panics.name)
	}
	for _, op := range d.operations {
		if !reflect.DeepEqual(op.Responses["500"], internal) {
			t.Errorf("%s describes another 500", op.name)
		}
	}
	d.operations = append(d.operations, panics)
	d.reportUndescribed(t)
}

func TestDocumentIsServedUnchanged(t *testing.T) {
	t.Parallel()
	r := newService(t).do("", "GET", "/openapi.json", "").want(t, 200, "")
	file, err := os.ReadFile("assets/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if r.body != string(file) {
		t.Errorf("the answer has %d bytes, the file %d", len(r.body), len(file))
	}
}
