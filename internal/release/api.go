package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/exp/apidiff"
	"golang.org/x/mod/semver"
	"golang.org/x/tools/go/packages"
)

// checkAPI compares the exported API of the work tree at dir with the last release's, and
// returns an error if version does not follow that release, or hides an incompatible
// change. Without a release there is nothing to compare.
func checkAPI(dir, version string) error {
	last, err := lastRelease(dir)
	if err != nil || last == "" {
		return err
	}
	changes, err := incompatible(dir, last)
	if err != nil {
		return err
	}
	return admits(last, version, changes)
}

// admits returns an error unless version may follow last with these incompatible changes:
// they need another major version or, below 1.0.0, another minor version.
func admits(last, version string, changes []string) error {
	series := semver.Major
	if semver.Major(last) == "v0" {
		series = semver.MajorMinor
	}
	switch {
	case semver.Compare(version, last) <= 0:
		return fmt.Errorf("CHANGELOG.md announces %s, and %s is released", version, last)
	case semver.Compare(semver.Major(version), "v2") >= 0:
		return fmt.Errorf("%s needs module paths that end in /%s", version, semver.Major(version))
	case len(changes) > 0 && series(version) == series(last):
		return fmt.Errorf("%s does not admit incompatible changes since %s:\n%s",
			version, last, strings.Join(changes, "\n"))
	}
	return nil
}

// incompatible returns the changes of the API between the release last and the work tree at
// dir that can break a program.
func incompatible(dir, last string) ([]string, error) {
	old, err := os.MkdirTemp("", "release")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(old)
	if _, err := git(dir, "-c", "advice.detachedHead=false", "clone", "--quiet", "--branch", last, ".", old); err != nil {
		return nil, err
	}
	before, err := publicPackages(old)
	if err != nil {
		return nil, err
	}
	after, err := publicPackages(dir)
	if err != nil {
		return nil, err
	}
	var changes []string
	report := apidiff.ModuleChanges(apiOf(before), apiOf(after))
	for _, change := range report.Changes {
		if !change.Compatible {
			changes = append(changes, change.Message)
		}
	}
	return changes, nil
}

func apiOf(loaded []*packages.Package) *apidiff.Module {
	module := &apidiff.Module{Path: rootPath}
	for _, p := range loaded {
		module.Packages = append(module.Packages, p.Types)
	}
	return module
}

// publicPackages loads the packages of the published modules that others can import.
func publicPackages(dir string) (public []*packages.Package, err error) {
	modules, err := published(dir)
	if err != nil {
		return nil, err
	}
	for _, module := range modules {
		loaded, err := packages.Load(&packages.Config{
			Dir:  filepath.Join(dir, module),
			Env:  append(os.Environ(), "GOFLAGS=-trimpath"), // clones share the build cache
			Mode: packages.NeedName | packages.NeedImports | packages.NeedTypes,
		}, "./...")
		if err != nil {
			return nil, err
		}
		for _, p := range loaded {
			for _, fault := range p.Errors {
				err = errors.Join(err, fault)
			}
			if p.Name != "main" && !strings.Contains(p.PkgPath+"/", "/internal/") {
				public = append(public, p)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return public, nil
}
