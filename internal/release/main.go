// Release makes the next release: it writes the version into every go.mod and into
// CHANGELOG.md, commits, and tags the root module and each store's module. Run it from the
// root of the repository:
//
//	go run -C internal/release . -n    # shows what a release would do, and changes nothing
//	go run -C internal/release .
//
// The version is the one in CHANGELOG.md's heading "## 0.1.0 - unreleased". A version that
// does not admit an incompatible change of the API is refused. Nothing is pushed: the last
// line printed is the command that publishes. docs/releasing.md has the whole procedure.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"
)

func main() {
	log.SetFlags(0)
	dir := flag.String("dir", "../..", "the root of the repository")
	dry := flag.Bool("n", false, "show what a release would do, and change nothing")
	flag.Parse()
	if err := release(*dir, *dry, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// release makes the next release of the repository at dir. It works in a clone, which the
// repository takes over at the end, so that a failure halfway, or dry, leaves no trace.
func release(dir string, dry bool, out io.Writer) error {
	if changed, err := git(dir, "status", "--porcelain"); err != nil || changed != "" {
		return cmp.Or(err, errors.New("the work tree has changes that are not committed"))
	}
	version, err := nextVersion(dir)
	if err != nil {
		return err
	}
	if err := checkAPI(dir, version); err != nil {
		return err
	}
	clone, err := os.MkdirTemp("", "release")
	if err != nil {
		return err
	}
	defer os.RemoveAll(clone)
	if _, err := git(dir, "clone", "--quiet", ".", clone); err != nil {
		return err
	}
	tags, err := prepare(clone, version)
	if err != nil {
		return err
	}
	shown, err := git(clone, "show", "--format=%s", version)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s\n\ntags: %s\n", shown, strings.Join(tags, " "))
	if dry {
		fmt.Fprintln(out, "\nDry run: nothing has changed.")
		return nil
	}
	if _, err := git(dir, "fetch", "--quiet", "--tags", clone, "HEAD"); err != nil {
		return err
	}
	if _, err := git(dir, "merge", "--quiet", "--ff-only", "FETCH_HEAD"); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nPublish it with:\n\tgit push --atomic origin HEAD %s\n", strings.Join(tags, " "))
	return nil
}

// prepare commits the release in the clone, tags it, and commits the heading under which
// CHANGELOG.md collects what comes after it. It returns the tags.
func prepare(clone, version string) (tags []string, err error) {
	if err := requireVersion(clone, version); err != nil {
		return nil, err
	}
	changelog := filepath.Join(clone, "CHANGELOG.md")
	dated := fmt.Sprintf("## %s - %s", version[1:], time.Now().UTC().Format(time.DateOnly))
	if err := replaceHeading(changelog, dated); err != nil {
		return nil, err
	}
	if _, err := git(clone, "commit", "--quiet", "--all", "--message", "ganbauth "+version); err != nil {
		return nil, err
	}
	modules, err := published(clone)
	if err != nil {
		return nil, err
	}
	for _, module := range modules {
		tag := strings.TrimPrefix(module+"/"+version, "./")
		if _, err := git(clone, "tag", "--annotate", "--message", tag, tag); err != nil {
			return nil, err
		}
		tags = append(tags, tag)
	}
	next := fmt.Sprintf("## %s - unreleased\n\n%s", patchAfter(version)[1:], dated)
	if err := replaceHeading(changelog, next); err != nil {
		return nil, err
	}
	_, err = git(clone, "commit", "--quiet", "--all", "--message", "CHANGELOG: the next version begins")
	return tags, err
}

// requireVersion makes every module of the repository require version of the others. The
// replace directives beside the requirements stay: they keep the modules of a checkout
// together, and the go command ignores them in a dependency.
func requireVersion(dir, version string) error {
	modules, err := git(dir, "ls-files", "go.mod", "*/go.mod")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(modules) {
		name = filepath.Join(dir, name)
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		file, err := modfile.Parse(name, data, nil)
		if err != nil {
			return err
		}
		for _, r := range file.Require {
			if r.Mod.Path == rootPath || strings.HasPrefix(r.Mod.Path, rootPath+"/") {
				if err := file.AddRequire(r.Mod.Path, version); err != nil {
					return err
				}
			}
		}
		file.Cleanup()
		if data, err = file.Format(); err != nil {
			return err
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

const rootPath = "github.com/ganbauth/ganbauth"

// published returns the directories of the modules that are released, the root's first. Of
// the nested modules these are the stores: directories whose names end in "store".
func published(dir string) ([]string, error) {
	stores, err := git(dir, "ls-files", "--cached", "--others", "--exclude-standard", ":(glob)*store/go.mod")
	modules := []string{"."}
	for name := range strings.FieldsSeq(stores) {
		modules = append(modules, filepath.Dir(name))
	}
	return modules, err
}

var (
	unreleased = regexp.MustCompile(`(?m)^## (\d+\.\d+\.\d+) - unreleased$`)
	anyHeading = regexp.MustCompile(`(?m)^## `)
	listItem   = regexp.MustCompile(`(?m)^- `)
)

// nextVersion returns the version that CHANGELOG.md's first heading announces.
func nextVersion(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "CHANGELOG.md"))
	if err != nil {
		return "", err
	}
	heading := unreleased.FindSubmatchIndex(data)
	first := anyHeading.FindIndex(data)
	if heading == nil || heading[0] != first[0] {
		return "", errors.New(`CHANGELOG.md: the first heading is not of the form "## 0.1.0 - unreleased"`)
	}
	return "v" + string(data[heading[2]:heading[3]]), nil
}

// replaceHeading puts text in the place of the first heading of CHANGELOG.md, which must
// have at least one item.
func replaceHeading(name, text string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	all := anyHeading.FindAllIndex(data, 2)
	if len(all) == 0 {
		return fmt.Errorf("%s: no heading", name)
	}
	start, end := all[0][0], len(data)
	if len(all) > 1 {
		end = all[1][0]
	}
	line, items, _ := strings.Cut(string(data[start:end]), "\n")
	if !listItem.MatchString(items) {
		return fmt.Errorf("%s: nothing stands under %q", name, line)
	}
	return os.WriteFile(name, []byte(string(data[:start])+text+"\n"+items+string(data[end:])), 0o644)
}

// patchAfter returns the version with the next patch number.
func patchAfter(version string) string {
	var patch int
	minor := semver.MajorMinor(version)
	_, _ = fmt.Sscan(strings.TrimPrefix(version, minor+"."), &patch) // nextVersion has matched digits
	return fmt.Sprintf("%s.%d", minor, patch+1)
}

// lastRelease returns the newest version of the root module that HEAD contains, or "".
func lastRelease(dir string) (string, error) {
	if shallow, err := git(dir, "rev-parse", "--is-shallow-repository"); err != nil || shallow == "true" {
		return "", cmp.Or(err, errors.New("a shallow clone does not know the last release: git fetch --unshallow --tags"))
	}
	tags, err := git(dir, "tag", "--list", "v*", "--merged", "HEAD")
	last := ""
	for tag := range strings.FieldsSeq(tags) {
		if semver.IsValid(tag) && (last == "" || semver.Compare(tag, last) > 0) {
			last = tag
		}
	}
	return last, err
}

// git runs git in dir and returns what it prints, without the last line break.
func git(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("git %s: %w: %s", args[0], err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}
