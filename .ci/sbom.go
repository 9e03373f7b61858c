//go:build ignore

// Sbom describes what the binaries of a release contain, as an SPDX 2.3 document, and writes
// the licences of it: go run .ci/sbom.go VERSION SPDX LICENCES BINARY...
// The time in the document is SOURCE_DATE_EPOCH. If SPDX is -, it writes only the licences.
package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A component is a part of the binaries.
type component struct {
	Name, Version, License, URL string
	parent                      string // what contains it
	dir                         string // has its licences
}

// markers are texts that each occur in one licence only, with its SPDX identifier.
var markers = map[string]string{
	"Permission is hereby granted, free of charge": "MIT",
	"Neither the name":        "BSD-3-Clause",
	"SQLite Is Public Domain": "blessing",
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("sbom: ")
	if len(os.Args) < 5 {
		log.Fatal("usage: go run .ci/sbom.go VERSION SPDX LICENCES BINARY...")
	}
	components, commit := read(os.Args[1], os.Args[4:])
	var texts bytes.Buffer
	texts.WriteString("The binary of userd contains the software below, under these licences.\n")
	for _, c := range components {
		if c.dir != "" {
			fmt.Fprintf(&texts, "\n%s\n\n%s %s: %s\n", strings.Repeat("=", 79), c.Name, c.Version, c.License)
			for _, file := range licenceFiles(c.dir) {
				fmt.Fprintf(&texts, "\n--- %s\n\n%s\n", filepath.Base(file), bytes.TrimSpace(readFile(file)))
			}
		}
	}
	writeFile(os.Args[3], texts.Bytes())
	if os.Args[2] == "-" {
		return
	}
	if commit == "" {
		log.Fatal("the binaries do not name their commit")
	}
	document, err := json.MarshalIndent(spdx(components, os.Args[1], commit), "", "  ")
	if err != nil {
		log.Fatal(err)
	}
	writeFile(os.Args[2], append(document, '\n'))
}

// read returns the components of the binaries, userd first, and the commit that they were
// built from.
func read(version string, binaries []string) (list []component, commit string) {
	list = []component{{Name: "userd", Version: version, License: identify("LICENSE")}}
	modules, goVersion := make(map[string]string), ""
	for _, binary := range binaries {
		info, err := buildinfo.ReadFile(binary)
		if err != nil {
			log.Fatal(err)
		}
		goVersion = strings.TrimPrefix(info.GoVersion, "go")
		for _, m := range info.Deps {
			modules[m.Path] = m.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	root := goCommand("env", "GOROOT")
	list = append(list, component{"stdlib", goVersion, identify(filepath.Join(root, "LICENSE")), "pkg:golang/stdlib@" + goVersion, "userd", root})
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		dir := moduleDir(path, modules[path])
		c := component{path, modules[path], identify(filepath.Join(dir, "LICENSE")), "pkg:golang/" + path + "@" + modules[path], "userd", dir}
		list = append(list, c)
		switch path { // modules that contain other software, translated to Go
		case "modernc.org/sqlite":
			sqlite := regexp.MustCompile(`\bSQLITE_VERSION += "([0-9.]+)"`).FindSubmatch(readFile(filepath.Join(dir, "lib", "sqlite.go")))
			if sqlite == nil {
				log.Fatal("modernc.org/sqlite does not name the version of SQLite")
			}
			list = append(list, component{"SQLite", string(sqlite[1]), identify(filepath.Join(dir, "LICENSE-SQLITE")), "pkg:generic/sqlite@" + string(sqlite[1]), path, ""})
		case "modernc.org/libc":
			if !bytes.Contains(readFile(filepath.Join(dir, "LICENSE-3RD-PARTY.md")), []byte("musl as a whole is licensed under the following standard MIT license")) {
				log.Fatal("modernc.org/libc does not name the licence of musl")
			}
			list = append(list, component{"musl", "", "MIT", "pkg:generic/musl", path, ""})
		}
	}
	return list, commit
}

// moduleDir returns the directory of a module, of which it checks the version.
func moduleDir(path, version string) string {
	var m struct{ Version, Dir string }
	if err := json.Unmarshal([]byte(goCommand("list", "-m", "-json", path)), &m); err != nil || m.Version != version || m.Dir == "" {
		log.Fatalf("go list -m %s: %+v, %v; the binary has %s", path, m, err, version)
	}
	return m.Dir
}

// goCommand returns the output of the go command.
func goCommand(args ...string) string {
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		log.Fatalf("go %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// identify returns the SPDX identifier of the licence in a file.
func identify(file string) string {
	id, text := "", strings.Join(strings.Fields(string(readFile(file))), " ")
	for marker, license := range markers {
		if strings.Contains(text, marker) {
			if id != "" {
				log.Fatalf("%s has more than one licence", file)
			}
			id = license
		}
	}
	if id == "" {
		log.Fatalf("%s has an unknown licence: add it to markers", file)
	}
	return id
}

// licenceFiles returns the files with the licences of a component.
func licenceFiles(dir string) []string {
	var files []string
	for _, pattern := range []string{"LICENSE*", "PATENTS"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			log.Fatal(err)
		}
		files = append(files, found...)
	}
	return files
}

var notInIDs = regexp.MustCompile(`[^A-Za-z0-9.]+`)

func spdx(components []component, version, commit string) any {
	type object = map[string]any
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		log.Fatalf("SOURCE_DATE_EPOCH: %v", err)
	}
	id := func(name string) string { return "SPDXRef-" + notInIDs.ReplaceAllString(name, "-") }
	var packages []object
	relations := []object{{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": id("userd")}}
	for _, c := range components {
		p := object{
			"SPDXID": id(c.Name), "name": c.Name, "licenseDeclared": c.License, "licenseConcluded": c.License,
			"copyrightText": "NOASSERTION", "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
		}
		if c.Version != "" {
			p["versionInfo"] = c.Version
		}
		if c.parent == "" {
			p["primaryPackagePurpose"], p["sourceInfo"] = "APPLICATION", "commit "+commit
		} else {
			p["externalRefs"] = []object{{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": c.URL}}
			relations = append(relations, object{"spdxElementId": id(c.parent), "relationshipType": "CONTAINS", "relatedSpdxElement": id(c.Name)})
		}
		packages = append(packages, p)
	}
	return object{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": "userd " + version,
		"documentNamespace": "https://spdx.org/spdxdocs/userd-" + version + "-" + commit,
		"creationInfo":      object{"created": time.Unix(seconds, 0).UTC().Format(time.RFC3339), "creators": []string{"Tool: userd-sbom-" + version}},
		"packages":          packages, "relationships": relations,
	}
}

func readFile(name string) []byte {
	data, err := os.ReadFile(name)
	if err != nil {
		log.Fatal(err)
	}
	return data
}

func writeFile(name string, data []byte) {
	if err := os.WriteFile(name, data, 0o644); err != nil {
		log.Fatal(err)
	}
}
