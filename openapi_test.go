package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"mime"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// An object is one of openapi.json.
type object = map[string]any

// A document is openapi.json, and what has been seen of it in real exchanges.
type document struct {
	object
	seen     map[string]bool  // operations' statuses, types, codes and parameters
	answers  map[string][]any // by operation and status
	requests map[string][]any // bodies that were accepted, by operation
	left     map[string]bool  // members that were once left out, by their schema
}

func readDocument(t *testing.T) *document {
	t.Helper()
	d := &document{nil, make(map[string]bool), make(map[string][]any), make(map[string][]any), make(map[string]bool)}
	if err := json.Unmarshal(openAPI, &d.object); err != nil {
		t.Fatal(err)
	}
	return d
}

// resolve returns what v is, or refers to.
func (d *document) resolve(v any) object {
	o, _ := v.(object)
	ref, ok := o["$ref"].(string)
	if !ok {
		return o
	}
	var at any = d.object
	for name := range strings.SplitSeq(strings.TrimPrefix(ref, "#/"), "/") {
		parent, _ := at.(object)
		at = parent[name]
	}
	target, ok := at.(object)
	if !ok {
		panic("openapi.json refers to " + ref + ", which is not in it")
	}
	return target
}

// An operation is one method of one path.
type operation struct {
	name string // as a route's pattern
	object
	parameters []object // the path's too
}

func (d *document) operations() []operation {
	var list []operation
	for path, item := range d.object["paths"].(object) {
		item := item.(object)
		for method, op := range item {
			if method == "parameters" {
				continue
			}
			o := operation{name: strings.ToUpper(method) + " " + path, object: op.(object)}
			shared, _ := item["parameters"].([]any)
			own, _ := o.object["parameters"].([]any)
			for _, p := range slices.Concat(shared, own) {
				o.parameters = append(o.parameters, d.resolve(p))
			}
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b operation) int { return strings.Compare(a.name, b.name) })
	return list
}

// examples returns the examples of a media type, a parameter or a header.
func (d *document) examples(v object) []any {
	var list []any
	if e, ok := v["example"]; ok {
		list = append(list, e)
	}
	named, _ := v["examples"].(object)
	for _, name := range slices.Sorted(maps.Keys(named)) {
		list = append(list, d.resolve(named[name])["value"])
	}
	return list
}

// codes returns the codes of an error answer, which its examples list.
func (d *document) codes(response object) []string {
	var list []string
	content, _ := response["content"].(object)
	asJSON, _ := content["application/json"].(object)
	for _, e := range d.examples(asJSON) {
		if e, ok := e.(object); ok && e["code"] != nil {
			list = append(list, e["code"].(string))
		}
	}
	return list
}

// check returns what is wrong with v by a schema of openapi.json: by each
// keyword that it uses, and a keyword that is not known here is wrong too. In
// one thing it is stricter than JSON Schema: a member that is not described is
// wrong where nothing says that others may be there.
func (d *document) check(schema object, v any, at string) (wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, at+": "+fmt.Sprintf(format, args...)) }
	text, isText := v.(string)
	number, isNumber := v.(float64)
	members, isObject := v.(object)
	items, isArray := v.([]any)
	for keyword, arg := range schema {
		switch keyword {
		case "description", "default", "examples":
		case "$ref":
			wrong = append(wrong, d.check(d.resolve(schema), v, at)...)
		case "type":
			types, several := arg.([]any)
			if !several {
				types = []any{arg}
			}
			_, isBool := v.(bool)
			is := map[any]bool{
				"string": isText, "object": isObject, "array": isArray, "boolean": isBool,
				"null": v == nil, "integer": isNumber && number == math.Trunc(number),
			}
			if !slices.ContainsFunc(types, func(t any) bool { return is[t] }) {
				say("%v is no %v", v, arg)
			}
		case "const":
			if !reflect.DeepEqual(v, arg) {
				say("%v is not %v", v, arg)
			}
		case "enum":
			if !slices.Contains(arg.([]any), v) {
				say("%v is none of %v", v, arg)
			}
		case "pattern":
			if isText && !regexp.MustCompile(arg.(string)).MatchString(text) {
				say("%q does not match %s", text, arg)
			}
		case "minLength":
			if isText && float64(utf8.RuneCountInString(text)) < arg.(float64) {
				say("%q is shorter than %v", text, arg)
			}
		case "maxLength":
			if isText && float64(utf8.RuneCountInString(text)) > arg.(float64) {
				say("%q is longer than %v", text, arg)
			}
		case "minimum":
			if isNumber && number < arg.(float64) {
				say("%v is below %v", v, arg)
			}
		case "maximum":
			if isNumber && number > arg.(float64) {
				say("%v is above %v", v, arg)
			}
		case "format":
			switch arg {
			case "password", "int64": // the one is for people, the other in type
			case "date-time":
				if _, err := time.Parse(time.RFC3339, text); isText && (err != nil || !strings.HasSuffix(text, "Z")) {
					say("%q is no time in UTC", text)
				}
			case "email":
				if isText && checkEmail(text) != "" {
					say("%q is no address", text)
				}
			default:
				say("unknown format %v", arg)
			}
		case "required":
			for _, name := range arg.([]any) {
				if _, ok := members[name.(string)]; isObject && !ok {
					say("%v is missing", name)
				}
			}
		case "dependentRequired":
			for name, others := range arg.(object) {
				for _, other := range others.([]any) {
					_, is := members[name]
					if _, ok := members[other.(string)]; is && !ok {
						say("%v is missing beside %s", other, name)
					}
				}
			}
		case "properties":
			for name, s := range arg.(object) {
				if value, ok := members[name]; ok {
					wrong = append(wrong, d.check(s.(object), value, at+"."+name)...)
				}
			}
		case "additionalProperties": // below
		case "items":
			for i, item := range items {
				wrong = append(wrong, d.check(arg.(object), item, fmt.Sprintf("%s[%d]", at, i))...)
			}
		default:
			say("unknown keyword %s", keyword)
		}
	}
	properties, some := schema["properties"].(object)
	more, said := schema["additionalProperties"]
	if some || said {
		for name, value := range members {
			if properties[name] != nil || more == true {
				continue
			}
			if s, ok := more.(object); ok {
				wrong = append(wrong, d.check(s, value, at+"."+name)...)
			} else {
				say("%s is not described", name)
			}
		}
	}
	return wrong
}

// note keeps which members of a real body were left out.
func (d *document) note(schema object, v any) {
	properties, _ := schema["properties"].(object)
	members, isObject := v.(object)
	for name, s := range properties {
		if value, ok := members[name]; ok {
			d.note(s.(object), value)
		} else if isObject {
			d.left[memberKey(schema, name)] = true
		}
	}
	if schema["$ref"] != nil {
		d.note(d.resolve(schema), v)
	}
	if s, ok := schema["items"].(object); ok {
		list, _ := v.([]any)
		for _, item := range list {
			d.note(s, item)
		}
	}
}

func memberKey(schema object, name string) string {
	return fmt.Sprint(reflect.ValueOf(schema).Pointer(), name)
}

// checkText is check for a value that travels as text: in a header, a path or a
// query.
func (d *document) checkText(schema object, text, at string) []string {
	var v any = text
	s := schema
	for s["$ref"] != nil {
		s = d.resolve(s)
	}
	if s["type"] == "integer" || s["type"] == "boolean" {
		if json.Unmarshal([]byte(text), &v) != nil {
			return []string{at + ": " + text}
		}
	}
	return d.check(schema, v, at)
}

func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	for _, row := range []struct{ claim, schema, good, bad string }{
		{"another type", `{"type":"string"}`, `"x"`, `1`},
		{"a fraction for an integer", `{"type":"integer"}`, `1`, `1.5`},
		{"neither of two types", `{"type":["string","null"]}`, `null`, `false`},
		{"another constant", `{"const":"Bearer"}`, `"Bearer"`, `"bearer"`},
		{"what is not listed", `{"enum":["a","b"]}`, `"b"`, `"c"`},
		{"another pattern", `{"pattern":"^a$"}`, `"a"`, `"ab"`},
		{"what is too short", `{"minLength":2}`, `"ää"`, `"ä"`},
		{"what is too long", `{"maxLength":1}`, `"ä"`, `"ää"`},
		{"what is too small", `{"minimum":1}`, `1`, `0`},
		{"what is too large", `{"maximum":1}`, `1`, `2`},
		{"a time in another zone", `{"format":"date-time"}`, `"2026-05-04T03:02:01Z"`, `"2026-05-04T03:02:01+02:00"`},
		{"what is no address", `{"format":"email"}`, `"a@b"`, `"a"`},
		{"a format that it does not know", `{"format":"password"}`, `"x"`, ``},
		{"a missing member", `{"required":["a"]}`, `{"a":1}`, `{}`},
		{"a member without another", `{"dependentRequired":{"a":["b"]}}`, `{"a":1,"b":1}`, `{"a":1}`},
		{"a wrong member", `{"properties":{"a":{"type":"string"}}}`, `{"a":"x"}`, `{"a":1}`},
		{"a member that is not described", `{"properties":{"a":{}}}`, `{}`, `{"b":1}`},
		{"a wrong member among others", `{"additionalProperties":{"type":"string"}}`, `{"b":"x"}`, `{"b":1}`},
		{"any member", `{"additionalProperties":false}`, `{}`, `{"b":1}`},
		{"a wrong item", `{"items":{"type":"string"}}`, `["x"]`, `["x",1]`},
		{"what the other schema refuses", `{"$ref":"#/components/schemas/Role"}`, `"admin"`, `"root"`},
		{"what stands beside the other schema", `{"$ref":"#/components/schemas/User","required":["email"]}`, `{"id":1,"username":"a","email":"b"}`, `{"id":1,"username":"a"}`},
	} {
		t.Run(row.claim, func(t *testing.T) {
			var schema object
			var good, bad any
			for text, v := range map[string]any{row.schema: &schema, row.good: &good, row.bad: &bad} {
				if err := json.Unmarshal([]byte(text), v); text != "" && err != nil {
					t.Fatal(err)
				}
			}
			if wrong := d.check(schema, good, "value"); wrong != nil {
				t.Errorf("%s is refused: %v", row.good, wrong)
			}
			if row.bad != "" && d.check(schema, bad, "value") == nil {
				t.Errorf("%s is let through", row.bad)
			}
		})
	}
	for _, schema := range []object{{"oneOf": []any{}}, {"format": "uuid"}, {"typ": "string"}} {
		if d.check(schema, "x", "value") == nil {
			t.Errorf("%v is let through", schema)
		}
	}
}

// eachSchema calls f with each schema, in whole and in part, and with what it
// is the schema of where that is a media type, a parameter or a header.
func (d *document) eachSchema(f func(at string, schema, of object)) {
	var in func(s, of object, at string)
	in = func(s, of object, at string) {
		f(at, s, of)
		for _, part := range []string{"items", "additionalProperties"} {
			if s, ok := s[part].(object); ok {
				in(s, nil, at+"/"+part)
			}
		}
		properties, _ := s["properties"].(object)
		for name, s := range properties {
			in(s.(object), nil, at+"/"+name)
		}
	}
	var walk func(v any, at string)
	walk = func(v any, at string) {
		switch v := v.(type) {
		case []any:
			for i, v := range v {
				walk(v, fmt.Sprint(at, "/", i))
			}
		case object:
			if schema, ok := v["schema"].(object); ok {
				in(schema, v, at)
			}
			for name, v := range v {
				if schemas, ok := v.(object); ok && name == "schemas" {
					for name, s := range schemas {
						in(s.(object), nil, at+"/"+name)
					}
				} else if name != "schema" && name != "example" && name != "value" {
					walk(v, at+"/"+name)
				}
			}
		}
	}
	walk(d.object, "")
}

// Each schema uses known keywords alone and says what it wants, and each example
// and default is good by its schema.
func TestTheDocumentsSchemasAndExamplesAreGood(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	n := 0
	good := func(schema object, v any, at string) {
		n++
		for _, wrong := range d.check(schema, v, at) {
			t.Error(wrong)
		}
	}
	d.eachSchema(func(at string, s, of object) {
		for _, wrong := range d.check(s, nil, at) {
			if strings.Contains(wrong, ": unknown keyword ") || strings.Contains(wrong, ": unknown format ") {
				t.Error(wrong)
			}
		}
		if s["type"] == nil && s["$ref"] == nil && s["const"] == nil && s["description"] != "Ignored." ||
			s["type"] == "object" && s["properties"] == nil && s["additionalProperties"] == nil ||
			s["type"] == "array" && s["items"] == nil {
			t.Errorf("%s: nearly anything would be good", at)
		}
		examples, _ := s["examples"].([]any)
		if of != nil {
			examples = append(examples, d.examples(of)...)
		}
		if v, ok := s["default"]; ok {
			examples = append(examples, v)
		}
		for _, e := range examples {
			good(s, e, at)
		}
		aProblem, ofItself := strings.HasSuffix(at, "/application/problem+json"), strings.HasPrefix(at, "/paths//openapi.json")
		if of != nil && strings.Contains(at, "/content/") && examples == nil && !aProblem && !ofItself {
			t.Errorf("%s: there is no example", at)
		}
	})
	if n < 50 {
		t.Errorf("only %d examples were found", n)
	}
}

func TestTheDocumentHasTheRoutesAndWhoMayCallThem(t *testing.T) {
	t.Parallel()
	words := map[access]string{anyone: "anyone", signedIn: "signed in", adminOnly: "admin", selfOrAdmin: "self or admin", byDirectory: "by directory"}
	described, routes, ids := make(map[string]string), make(map[string]string), make(map[any]bool)
	d := readDocument(t)
	if want := []any{object{"accessToken": []any{}}}; !reflect.DeepEqual(d.object["security"], want) {
		t.Errorf("what is asked for where nothing else is said: %v, want %v", d.object["security"], want)
	}
	for _, op := range d.operations() {
		described[op.name] = op.object["x-access"].(string)
		security, said := op.object["security"].([]any)
		free := said && (len(security) == 0 || slices.ContainsFunc(security, func(s any) bool { return len(s.(object)) == 0 }))
		if free != (described[op.name] == "anyone") {
			t.Errorf("%s is for %s, and its security is %v", op.name, described[op.name], op.object["security"])
		}
		if id := op.object["operationId"]; id == nil || ids[id] {
			t.Errorf("%s: operationId %v", op.name, id)
		} else {
			ids[id] = true
		}
		inPath := 0
		for _, p := range op.parameters {
			if p["in"] == "path" {
				inPath++
				if !strings.Contains(op.name, "{"+p["name"].(string)+"}") {
					t.Errorf("%s has no {%s}", op.name, p["name"])
				}
			}
		}
		if inPath != strings.Count(op.name, "{") {
			t.Errorf("%s: not each part of the path is described", op.name)
		}
	}
	for _, rt := range new(server).routes() {
		routes[rt.pattern] = words[rt.access]
	}
	if !maps.Equal(described, routes) {
		for _, name := range slices.Sorted(maps.Keys(routes)) {
			t.Logf("%-40s %-15s in the document: %s", name, routes[name], described[name])
		}
		t.Errorf("described are %v\nroutes are    %v", described, routes)
	}
}

// The OpenAPI document and docs/api.md list every error code with its status.
func TestTheDocumentHasTheErrors(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	statuses := make(map[string]int)
	for _, a := range declaredErrors(t) {
		statuses[a.code] = a.status
	}
	var listed []string
	for _, code := range d.resolve(object{"$ref": "#/components/schemas/Code"})["enum"].([]any) {
		listed = append(listed, code.(string))
	}
	slices.Sort(listed)
	if codes := slices.Sorted(maps.Keys(statuses)); !slices.Equal(codes, listed) {
		t.Errorf("the document lists %q\nthe errors have    %q", listed, codes)
	}
	used := make(map[string]int)
	responses := func(name string, all object) {
		for status, response := range all {
			for _, code := range d.codes(d.resolve(response)) {
				used[code], _ = strconv.Atoi(status)
				if used[code] != statuses[code] {
					t.Errorf("%s: %s is under %s, and is %d", name, code, status, statuses[code])
				}
			}
		}
	}
	for _, op := range d.operations() {
		responses(op.name, op.object["responses"].(object))
	}
	responses("any other request", d.object["x-other-requests"].(object))
	if !maps.Equal(used, statuses) {
		t.Errorf("answered with are %v\nthere are         %v", used, statuses)
	}

	page, err := os.ReadFile("docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	listedCodes := make(map[string]int)
	for _, row := range regexp.MustCompile(`(?m)^\| ([45]\d\d) \|(.*)\|$`).FindAllStringSubmatch(string(page), -1) {
		for _, code := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(row[2], -1) {
			if code[1] != "current_password" { // a member of a body, not a code
				listedCodes[code[1]], _ = strconv.Atoi(row[1])
			}
		}
	}
	if !maps.Equal(listedCodes, statuses) {
		t.Errorf("docs/api.md lists %v\nthe errors are    %v", listedCodes, statuses)
	}
}

func TestTheDocumentHasTheTypesOfEvents(t *testing.T) {
	t.Parallel()
	listed := readDocument(t).resolve(object{"$ref": "#/components/schemas/EventType"})["enum"]
	if want := fmt.Sprint(eventTypes); fmt.Sprint(listed) != want {
		t.Errorf("the document lists %v, there are %s", listed, want)
	}
}

// bodies are what the routes that read a body make of it.
var bodies = map[string]any{
	"POST /api/register":     registerRequest{},
	"POST /api/login":        loginRequest{},
	"POST /api/refresh":      refreshRequest{},
	"POST /api/logout":       struct{}{},
	"POST /api/users":        createRequest{},
	"PUT /api/users/{id}":    updateRequest{},
	"PATCH /api/users/{id}":  updateRequest{},
	"DELETE /api/users/{id}": deleteRequest{},
}

// memberNames returns the members of a request's body, in order.
func memberNames(request any) []string {
	names := []string{}
	for i := range reflect.TypeOf(request).NumField() {
		names = append(names, reflect.TypeOf(request).Field(i).Tag.Get("json"))
	}
	return names
}

func TestTheDocumentHasTheMembersOfEachBody(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	for _, op := range d.operations() {
		request, has := bodies[op.name]
		body, described := op.object["requestBody"].(object)
		if has != described {
			t.Errorf("%s reads a body: %t; described: %t", op.name, has, described)
		}
		if !has || !described {
			continue
		}
		schema := d.resolve(body["content"].(object)["application/json"].(object)["schema"])
		properties, _ := schema["properties"].(object)
		names := memberNames(request)
		slices.Sort(names)
		if got := slices.Sorted(maps.Keys(properties)); !slices.Equal(got, names) {
			t.Errorf("%s: described are %q, read are %q", op.name, got, names)
		}
		if schema["additionalProperties"] != false {
			t.Errorf("%s: other members are refused", op.name)
		}
	}
}

// A witness asks a service and holds each answer, and each request that was
// accepted, to the document.
type witness struct {
	*service
	doc    *document
	accept string // of each request
}

// undescribed are headers that every answer has, or that HTTP itself describes.
var undescribed = []string{"Cache-Control", "Content-Length", "Content-Type", "Date", "X-Content-Type-Options"}

func (w *witness) do(token, method, path, body string, headers ...string) reply {
	w.t.Helper()
	if i := slices.IndexFunc(headers, func(h string) bool { return strings.HasPrefix(h, "Accept: ") }); i >= 0 {
		headers[i] += ", " + w.accept
	} else if w.accept != "" {
		headers = append(headers, "Accept: "+w.accept)
	}
	r := w.service.do(token, method, path, body, headers...)
	op, values := w.doc.find(method, path)
	at := fmt.Sprintf("%s %s: %d", method, path, r.status)
	w.holdAnswer(op, r, at)
	if op.object == nil {
		return r
	}
	// What the service refuses for its form, the document refuses, and the other way round.
	wrong := append(w.checkParameters(op, values, path, headers), w.checkBody(op, body)...)
	switch code := r.field("code"); {
	case r.status < 400 && wrong != nil:
		w.t.Errorf("%s: %s is accepted, and by the document wrong: %q", at, body, wrong)
	case wrong == nil && slices.Contains([]string{"malformed_body", "unknown_member", "wrong_type", "missing_fields", "invalid_fields", "bad_parameter"}, code):
		w.t.Errorf("%s: %s is %s, and by the document right", at, body, code)
	}
	if r.status < 400 {
		w.holdRequest(op, values, path, body, headers)
	}
	return r
}

// find returns the operation of a request and the values in its path; without
// an object where there is none.
func (d *document) find(method, path string) (operation, map[string]string) {
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(path, "/")
	for _, op := range d.operations() {
		opMethod, template, _ := strings.Cut(op.name, " ")
		names := strings.Split(template, "/")
		if opMethod != method || len(names) != len(parts) {
			continue
		}
		values, same := make(map[string]string), true
		for i, name := range names {
			if strings.HasPrefix(name, "{") {
				values[strings.Trim(name, "{}")] = parts[i]
			} else if name != parts[i] {
				same = false
			}
		}
		if same {
			return op, values
		}
	}
	return operation{name: "any other request"}, nil
}

func (w *witness) holdAnswer(op operation, r reply, at string) {
	w.t.Helper()
	responses, _ := op.object["responses"].(object)
	if op.object == nil {
		responses = w.doc.object["x-other-requests"].(object)
	}
	status := strconv.Itoa(r.status)
	response := w.doc.resolve(responses[status])
	if response == nil {
		w.t.Errorf("%s is not described: %s", at, r.body)
		return
	}
	headers, _ := response["headers"].(object)
	known := slices.Clone(undescribed)
	for name, h := range headers {
		h := w.doc.resolve(h)
		name = http.CanonicalHeaderKey(name)
		known = append(known, name)
		if values := r.header[name]; len(values) == 1 {
			for _, wrong := range w.doc.checkText(h["schema"].(object), values[0], at+": "+name) {
				w.t.Error(wrong)
			}
			w.doc.seen[op.name+" "+status+" "+name] = true
		} else if h["required"] == true || len(values) > 1 {
			w.t.Errorf("%s: %s: %q", at, name, values)
		} else {
			w.doc.seen[op.name+" "+status+" without "+name] = true
		}
	}
	for name := range r.header {
		if !slices.Contains(known, name) {
			w.t.Errorf("%s: the header %s is not described", at, name)
		}
	}
	content, has := response["content"].(object)
	if !has {
		if r.body != "" {
			w.t.Errorf("%s: an answer without a body: %s", at, r.body)
		}
		w.doc.seen[op.name+" "+status] = true
		return
	}
	kind, _, err := mime.ParseMediaType(r.header.Get("Content-Type"))
	if err != nil {
		w.t.Fatalf("%s: %v", at, err)
	}
	described, _ := content[kind].(object)
	if described == nil {
		w.t.Errorf("%s: %s is not described", at, kind)
		return
	}
	var body any = r.body
	if strings.HasSuffix(kind, "json") {
		if err := json.Unmarshal([]byte(r.body), &body); err != nil {
			w.t.Fatalf("%s: %v: %s", at, err, r.body)
		}
	}
	for _, wrong := range w.doc.check(described["schema"].(object), body, at) {
		w.t.Error(wrong)
	}
	w.doc.note(described["schema"].(object), body)
	code := ""
	if r.status >= 400 {
		if code = r.field("code"); !slices.Contains(w.doc.codes(response), code) {
			w.t.Errorf("%s: no example has the code %s: %s", at, code, r.body)
		}
	}
	w.doc.seen[strings.TrimSpace(op.name+" "+status+" "+kind+" "+code)] = true
	key := op.name + " " + status
	w.doc.answers[key] = append(w.doc.answers[key], masked(body))
}

// given returns the parameters of a request that the document describes,
// as text by name, and the names of others.
func (op operation) given(inPath map[string]string, path string, headers []string) (known map[string]string, others []string) {
	_, rawQuery, _ := strings.Cut(path, "?")
	query, _ := url.ParseQuery(rawQuery)
	known = maps.Clone(inPath)
	for name := range query {
		known[name] = query.Get(name)
	}
	for _, h := range headers {
		if name, value, _ := strings.Cut(h, ": "); strings.HasPrefix(name, "If-") || name == "Last-Event-ID" {
			known[name] = value
		}
	}
	for name := range known {
		if !slices.ContainsFunc(op.parameters, func(p object) bool { return p["name"] == name }) {
			others = append(others, name)
		}
	}
	return known, others
}

// checkParameters returns what the document has against a request's parameters.
func (w *witness) checkParameters(op operation, inPath map[string]string, path string, headers []string) (wrong []string) {
	given, others := op.given(inPath, path, headers)
	for _, name := range others {
		wrong = append(wrong, name+" is not described")
	}
	for _, p := range op.parameters {
		if text, ok := given[p["name"].(string)]; ok {
			wrong = append(wrong, w.doc.checkText(p["schema"].(object), text, p["name"].(string))...)
		}
	}
	return wrong
}

// holdRequest keeps what was accepted.
func (w *witness) holdRequest(op operation, inPath map[string]string, path, body string, headers []string) {
	given, _ := op.given(inPath, path, headers)
	for name := range given {
		w.doc.seen[op.name+" parameter "+name] = true
	}
	described, ok := op.object["requestBody"].(object)
	if !ok {
		return
	}
	if body == "" {
		w.doc.seen[op.name+" without a body"] = true
		return
	}
	var v any
	if json.Unmarshal([]byte(body), &v) == nil {
		w.doc.requests[op.name] = append(w.doc.requests[op.name], masked(v))
		w.doc.note(described["content"].(object)["application/json"].(object)["schema"].(object), v)
	}
}

// checkBody returns what the document has against a request's body.
func (w *witness) checkBody(op operation, body string) []string {
	w.t.Helper()
	described, ok := op.object["requestBody"].(object)
	switch {
	case !ok && body == "", ok && body == "" && described["required"] == false:
		return nil
	case !ok || body == "":
		return []string{"a body that is there, or is not"}
	}
	var v any
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		return []string{err.Error()}
	}
	return w.doc.check(described["content"].(object)["application/json"].(object)["schema"].(object), v, "body")
}

// masked is a body without the tokens in it, which are new each time.
func masked(v any) any {
	if o, ok := v.(object); ok && (o["access_token"] != nil || o["refresh_token"] != nil) {
		o = maps.Clone(o)
		delete(o, "access_token")
		delete(o, "refresh_token")
		return o
	}
	return v
}

// like reports whether an answer is what an example shows: of a text, some lines.
func like(answer, example any) bool {
	text, isText := answer.(string)
	part, _ := example.(string)
	return reflect.DeepEqual(answer, example) || isText && part != "" && strings.Contains(text, part)
}

// example returns one of an operation's examples of a request's body.
func (d *document) example(t *testing.T, name string, i int) string {
	t.Helper()
	for _, op := range d.operations() {
		if op.name == name {
			e := d.examples(op.object["requestBody"].(object)["content"].(object)["application/json"].(object))
			text, err := json.Marshal(e[i])
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
	}
	t.Fatalf("there is no %s", name)
	return ""
}

// Every route gives every answer that the document describes, and no other.
func TestEveryRouteAnswersAsTheDocumentSays(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	for _, accept := range []string{"", "application/problem+json"} {
		ask := func(name string, scene func(w *witness), options ...func(*settings)) {
			t.Run(strings.TrimSpace(accept+" "+name), func(t *testing.T) {
				scene(&witness{newService(t, options...), d, accept})
			})
		}
		ask("what goes well", goesWell)
		ask("tokens", refusesTokens)
		ask("bodies and parameters", refusesBodies)
		ask("rights", refusesOthers)
		ask("names of others", func(w *witness) {
			_, ann := w.member("ann")
			w.admin("root")
			w.do(ann, "GET", "/api/users/2", "").want(w.t, 200, "")
			w.do(ann, "GET", "/api/users", "").want(w.t, 200, "")
		}, func(c *settings) { c.directory = directoryFull })
		ask("nothing of others", func(w *witness) {
			_, ann := w.member("ann")
			w.do(ann, "GET", "/api/users/2", "").want(w.t, 403, "forbidden")
			w.do(ann, "GET", "/api/users", "").want(w.t, 200, "")
		}, func(c *settings) { c.directory = directorySelf })
		ask("closed registration", func(w *witness) {
			w.do("", "POST", "/api/register", d.example(t, "POST /api/register", 0)).want(w.t, 403, "registration_closed")
		}, func(c *settings) { c.registration = registrationClosed })
		ask("conflicts", refusesConflicts)
		ask("proofs of the user", refusesProofs)
		ask("too many tries", refusesMany)
		ask("a full gate", refusesBusy)
		ask("a database that fails", refusesWithoutDatabase)
		t.Run(strings.TrimSpace(accept+" adopted users"), func(t *testing.T) {
			path := flaskDatabase(t,
				`CREATE TABLE bill (id INTEGER PRIMARY KEY, username VARCHAR(80) NOT NULL REFERENCES user (username))`,
				`INSERT INTO bill (username) VALUES ('ann')`)
			(&shell{t, path}).run(0, "", "adopt")
			w := &witness{newServiceOn(t, path), d, accept}
			r := w.do("", "POST", "/api/login", `{"username":"ann","password":"short"}`).want(t, 200, "")
			ann := r.field("access_token")
			w.do(ann, "GET", "/api/users/me", "").want(t, 200, "")
			w.do(ann, "PUT", "/api/users/me", `{"username":"anne"}`).want(t, 409, "user_referenced")
			w.do(ann, "PATCH", "/api/users/me", `{"username":"anne"}`).want(t, 409, "user_referenced")
			w.do(ann, "DELETE", "/api/users/me", "").want(t, 409, "user_referenced")
		})
	}
	if t.Failed() {
		return
	}
	if list := d.alwaysThere(); list != nil {
		t.Errorf("never left out, and yet not required: %q", list)
	}
	for _, op := range append(d.operations(), operation{name: "any other request", object: object{"responses": d.object["x-other-requests"]}}) {
		for _, p := range op.parameters {
			if !d.seen[fmt.Sprint(op.name, " parameter ", p["name"])] {
				t.Errorf("%s: the parameter %s was never used", op.name, p["name"])
			}
		}
		if body, ok := op.object["requestBody"].(object); ok {
			if body["required"] != !d.seen[op.name+" without a body"] {
				t.Errorf("%s: that a body is required is %v", op.name, body["required"])
			}
			for _, e := range d.examples(body["content"].(object)["application/json"].(object)) {
				if !slices.ContainsFunc(d.requests[op.name], func(v any) bool { return reflect.DeepEqual(v, masked(e)) }) {
					t.Errorf("%s: no request was like the example %v", op.name, e)
				}
			}
		}
		for status, response := range op.object["responses"].(object) {
			if status == "500" {
				continue // nothing known brings it about: TestAFailureOfUserdsOwn
			}
			response, at := d.resolve(response), op.name+" "+status
			headers, _ := response["headers"].(object)
			for name, h := range headers {
				always := !d.seen[at+" without "+http.CanonicalHeaderKey(name)]
				if required := d.resolve(h)["required"] == true; required != always || !d.seen[at+" "+http.CanonicalHeaderKey(name)] {
					t.Errorf("%s: %s is always there: %t; required: %t", at, name, always, required)
				}
			}
			content, has := response["content"].(object)
			if !has && !d.seen[at] {
				t.Errorf("%s was never seen", at)
			}
			codes := d.codes(response)
			if codes == nil {
				codes = []string{""}
			}
			for kind, described := range content {
				for _, code := range codes {
					if key := strings.TrimSpace(at + " " + kind + " " + code); !d.seen[key] {
						t.Errorf("%s was never seen", key)
					}
				}
				for _, e := range d.examples(described.(object)) {
					if !slices.ContainsFunc(d.answers[at], func(v any) bool { return like(v, masked(e)) }) {
						t.Errorf("%s: no answer was like the example %v", at, e)
					}
				}
			}
		}
	}
}

// alwaysThere returns the members that no real body has left out, and that the
// document does not say are required.
func (d *document) alwaysThere() (list []string) {
	d.eachSchema(func(at string, s, _ object) {
		properties, _ := s["properties"].(object)
		required, _ := s["required"].([]any)
		for name := range properties {
			if !d.left[memberKey(s, name)] && !slices.Contains(required, any(name)) {
				list = append(list, at+"/"+name)
			}
		}
	})
	slices.Sort(list)
	return list
}

func goesWell(w *witness) {
	t, d := w.t.(*testing.T), w.doc
	w.do("", "GET", "/api/test", "").want(t, 200, "")
	w.do("", "GET", "/openapi.json", "").want(t, 200, "")
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

	// From a token that is not fresh, the current password is needed.
	w.do(ann, "PATCH", "/api/users/1", d.example(t, "PATCH /api/users/{id}", 1)).want(t, 200, "")
	w.do(ann, "PUT", "/api/users/1", `{"password":"correct horse battery","current_password":"staple and paper clip"}`).want(t, 200, "")
	w.do(ann, "POST", "/api/logout", "").want(t, 204, "")
	for _, query := range []string{"", "?all=false", "?all=true"} {
		ann = w.login("annette")
		w.do(ann, "POST", "/api/logout"+query, d.example(t, "POST /api/logout", 0)).want(t, 204, "")
	}
	w.do(root, "DELETE", "/api/users/1/sessions", "").want(t, 204, "")
	r = w.do("", "POST", "/api/login", `{"username":"annette","password":"`+goodPassword+`"}`).want(t, 200, "")
	ann = r.field("access_token")
	sid := w.do(ann, "GET", "/api/users/me/sessions", "").want(t, 200, "").list(t, "id")
	w.do(root, "DELETE", "/api/users/1/sessions/"+sid[0], "").want(t, 204, "")
	ann = w.login("annette")
	w.do(root, "DELETE", "/api/users/3", "", "If-Match: *").want(t, 200, "")
	w.do(root, "DELETE", "/api/users/4", "{}").want(t, 200, "")
	w.do(ann, "DELETE", "/api/users/me", d.example(t, "DELETE /api/users/{id}", 0)).want(t, 200, "")

	w.register("ann")
	w.do("", "POST", "/api/login", d.example(t, "POST /api/login", 0)).want(t, 200, "")
}

// followEvents reads the beginning of a stream: where it stands, and one event.
func (w *witness) followEvents(token string) {
	op, inPath := w.doc.find("GET", "/api/events")
	headers := []string{"Last-Event-ID: 1"}
	if wrong := w.checkParameters(op, inPath, "/api/events", headers); wrong != nil {
		w.t.Errorf("a stream of events: %q", wrong)
	}
	w.holdRequest(op, inPath, "/api/events", "", headers)
	stream := w.follow(token, "", headers...)
	place, first := stream.next(), stream.next()
	stream.leave()
	w.holdAnswer(op, reply{200, stream.header, place + "\n" + first + "\n"}, "a stream of events")
	_, data, _ := strings.Cut(first, "data: ")
	var e any
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		w.t.Fatalf("%v: %s", err, first)
	}
	for _, wrong := range w.doc.check(object{"$ref": "#/components/schemas/Event"}, e, "an event of a stream") {
		w.t.Error(wrong)
	}
}

// paths calls f with the method and path of each route, about the caller itself.
func (w *witness) paths(f func(rt route, method, path string)) {
	for _, rt := range w.routes() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		f(rt, method, strings.NewReplacer("{id}", "me", "{sid}", "999").Replace(path))
	}
}

func refusesTokens(w *witness) {
	w.register("ann")
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
			w.do(root, method, path, `{"username":"new","email":"new@example.com","password":"`+strings.Repeat("x", maxPassword+1)+`"}`).want(w.t, 400, "invalid_fields")
			if method != "POST" {
				w.do(root, method, path, `{"role":"root"}`).want(w.t, 400, "invalid_fields")
			}
			w.do(root, method, path, `{"username":"ANN","email":"new@example.com","password":"`+goodPassword+`"}`).want(w.t, 400, "username_taken")
			w.do(root, method, path, `{"username":"new","email":"ANN@example.com","password":"`+goodPassword+`"}`).want(w.t, 400, "email_taken")
		case "POST /api/login":
			w.do(root, method, path, "{}").want(w.t, 400, "missing_fields")
			w.do(root, method, path, `{"username":"","password":"x"}`).want(w.t, 400, "missing_fields")
			w.do(root, method, path, `{"username":"x","password":""}`).want(w.t, 400, "missing_fields")
		}
	})
	w.do(root, "POST", "/api/users", `{"username":"new","email":"new@example.com","password":"`+goodPassword+`","role":"root"}`).want(w.t, 400, "invalid_fields")
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
		if rt.access == selfOrAdmin || rt.access == adminOnly {
			w.do(bob, method, strings.Replace(path, "/api/users/me", other, 1), "").want(w.t, 403, "forbidden")
		}
		if !strings.Contains(rt.pattern, "{id}") {
			return
		}
		body := ""
		if bodies[rt.pattern] != nil {
			body = "{}"
		}
		w.do(root, method, strings.Replace(path, "me", "x", 1), body).want(w.t, 404, "user_not_found")
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
	_, refresh := w.pair("ann")
	stale := w.do(refresh, "POST", "/api/refresh", "").want(w.t, 200, "").field("access_token")
	for _, row := range [][2]string{{"PUT", `"password":"another one",`}, {"PATCH", `"email":"x@example.com",`}, {"DELETE", ``}} {
		w.do(stale, row[0], "/api/users/me", "{"+strings.TrimSuffix(row[1], ",")+"}").want(w.t, 401, "fresh_login_required")
		w.do(stale, row[0], "/api/users/me", "{"+row[1]+`"current_password":"wrong"}`).want(w.t, 401, "wrong_password")
	}
}

func refusesMany(w *witness) {
	_, ann := w.member("ann")
	for range freeFailures {
		w.service.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`)
	}
	for _, limit := range []int{registrations, refreshes, passwords} {
		a := &w.limiter.limits[limit]
		for range a.burst {
			a.take(w.limiter.key(network("127.0.0.1")), w.now().UnixNano())
		}
	}
	w.do("", "POST", "/api/login", `{"username":"ann","password":"wrong"}`).want(w.t, 429, "too_many_requests")
	w.do("", "POST", "/api/register", "").want(w.t, 429, "too_many_requests")
	w.do("", "POST", "/api/refresh", "").want(w.t, 429, "too_many_requests")
	for _, method := range []string{"PUT", "PATCH", "DELETE"} {
		w.do(ann, method, "/api/users/me", `{"current_password":"wrong"}`).want(w.t, 429, "too_many_requests")
	}
}

func refusesBusy(w *witness) {
	_, root := w.admin("root")
	w.hasher.gate.crowd("127.0.0.0/24")
	w.do("", "POST", "/api/login", `{"username":"ann","password":"x"}`).want(w.t, 503, "busy")
	w.do("", "POST", "/api/register", w.doc.example(w.t.(*testing.T), "POST /api/register", 0)).want(w.t, 503, "busy")
	w.do(root, "POST", "/api/users", w.doc.example(w.t.(*testing.T), "POST /api/users", 0)).want(w.t, 503, "busy")
	for _, method := range []string{"PUT", "PATCH", "DELETE"} {
		w.do(root, method, "/api/users/me", `{"current_password":"x"}`).want(w.t, 503, "busy")
	}
	for range cap(w.large) {
		w.large <- struct{}{}
	}
	w.do("", "POST", "/api/refresh", sized(smallBody+1)).want(w.t, 503, "busy")
	w.do(root, "POST", "/api/logout", sized(smallBody+1)).want(w.t, 503, "busy")
	for range cap(w.feed.slots) {
		w.feed.slots <- struct{}{}
	}
	w.do(root, "GET", "/api/events", "", "Accept: text/event-stream").want(w.t, 503, "busy")
}

// Every route that needs the database is answered 503 without it, and no other.
func refusesWithoutDatabase(w *witness) {
	w.register("ann")
	ann, refresh := w.pair("ann")
	w.service.do(refresh, "POST", "/api/refresh", "").want(w.t, 200, "") // so that what became of it must be read
	w.keepLog()
	if err := w.store.readers.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.paths(func(rt route, method, path string) {
		token, body := ann, ""
		switch rt.pattern {
		case "GET /api/test", "GET /openapi.json", "GET /healthz":
			w.do("", method, path, "").want(w.t, 200, "")
			return
		case "POST /api/refresh":
			token = refresh
		case "POST /api/login", "POST /api/register":
			body = w.doc.example(w.t.(*testing.T), rt.pattern, 0)
		}
		w.do(token, method, path, body).want(w.t, 503, "unavailable")
	})
}

// A 500 is the same for each route.
func TestAFailureOfUserdsOwn(t *testing.T) {
	t.Parallel()
	d := readDocument(t)
	response := d.object["components"].(object)["responses"].(object)["InternalError"]
	for _, accept := range []string{"application/json", "application/problem+json"} {
		w := &witness{newService(t), d, accept}
		w.keepLog()
		w.handle("GET /panic", func(*exchange) error { panic("oh no") })
		r := w.service.do("", "GET", "/panic", "", "Accept: "+accept).want(t, 500, "internal")
		w.holdAnswer(operation{"GET /panic", object{"responses": object{"500": response}}, nil}, r, "GET /panic")
	}
	for _, op := range d.operations() {
		if !reflect.DeepEqual(d.resolve(op.object["responses"].(object)["500"]), d.resolve(response)) {
			t.Errorf("%s has another 500", op.name)
		}
	}
}

func TestTheDocumentIsServedAsItIs(t *testing.T) {
	t.Parallel()
	r := newService(t).do("", "GET", "/openapi.json", "").want(t, 200, "")
	file, err := os.ReadFile("assets/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	if r.body != string(file) {
		t.Errorf("got %d bytes, the file has %d", len(r.body), len(file))
	}
}
