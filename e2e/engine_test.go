package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth/internal/testenv"
)

// engine is a kind of browser. start runs one with an empty profile, which takes any
// certificate and, where cookies is false, no cookie.
type engine struct {
	name  string
	start func(t *testing.T, cookies bool) browser
}

var engines = []engine{{"chromium", startChromium}, {"firefox", startFirefox}, {"webkit", startWebKit}}

// browser is what the tests need of WebDriver. It takes one command at a time.
type browser interface {
	// newTab opens an empty tab and returns its handle.
	newTab() (handle string, err error)
	closeTab(handle string) error
	// open begins a navigation, as a typed address does, and does not wait for its page.
	open(handle, url string) error
	// back is the browser's button.
	back(handle string) error
	// reload is the browser's button.
	reload(handle string) error
	// click clicks with the mouse on what the XPath finds.
	click(handle, xpath string) error
	// evaluate returns the value of an expression, or of its promise, as JSON.
	evaluate(handle, expression string) (string, error)
}

// startChromium runs Debian's chromium-driver, which runs Chromium.
func startChromium(t *testing.T, cookies bool) browser {
	program := testenv.Needs(t, "chromium", "chromium-browser", "google-chrome")
	driver := testenv.Needs(t, "chromedriver")
	options := map[string]any{
		"binary": program,
		"args": []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
			"--disable-component-update", "--ignore-certificate-errors"},
	}
	if !cookies {
		options["prefs"] = map[string]any{"profile.default_content_setting_values.cookies": 2}
	}
	dir, port := t.TempDir(), strconv.Itoa(testenv.FreePort(t))
	cmd := exec.Command(driver, "--port="+port)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	startProcess(t, cmd)
	return newWebDriver(t, "http://127.0.0.1:"+port, map[string]any{"goog:chromeOptions": options})
}

// startWebKit runs Debian's webkit2gtk-driver, which runs WebKitGTK's own browser, on a
// display of its own.
func startWebKit(t *testing.T, cookies bool) browser {
	driver := testenv.Needs(t, "WebKitWebDriver")
	found, _ := filepath.Glob("/usr/lib/*/webkit2gtk-4.1/MiniBrowser")
	program := testenv.Needs(t, append(found, "MiniBrowser")...)
	args := []string{"--automation"}
	if !cookies {
		args = append(args, "--cookies-policy=never")
	}
	dir, port := t.TempDir(), strconv.Itoa(testenv.FreePort(t))
	cmd := exec.Command(driver, "--port="+port)
	cmd.Env = append(os.Environ(), "DISPLAY="+startDisplay(t), "TMPDIR="+dir, "HOME="+dir, "XDG_RUNTIME_DIR="+dir,
		"LIBGL_ALWAYS_SOFTWARE=1", "NO_AT_BRIDGE=1", "GIO_USE_VFS=local", "GSETTINGS_BACKEND=memory")
	startProcess(t, cmd)
	return newWebDriver(t, "http://127.0.0.1:"+port,
		map[string]any{"webkitgtk:browserOptions": map[string]any{"binary": program, "args": args}})
}

// startDisplay runs an X server without a screen and returns its name.
func startDisplay(t *testing.T) string {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	cmd := exec.Command(testenv.Needs(t, "Xvfb"), "-displayfd", "3", "-nolisten", "tcp", "-screen", "0", "1280x900x24")
	cmd.ExtraFiles = []*os.File{w}
	startProcess(t, cmd)
	require.NoError(t, w.Close())
	number, err := bufio.NewReader(r).ReadString('\n')
	require.NoError(t, err)
	return ":" + strings.TrimSpace(number)
}

// startFirefox runs Debian's firefox-esr, which has WebDriver BiDi built in.
func startFirefox(t *testing.T, cookies bool) browser {
	program, dir := testenv.Needs(t, "firefox-esr", "firefox"), t.TempDir()
	prefs := `user_pref("dom.ipc.processPrelaunch.enabled", false);` + "\n"
	if !cookies {
		prefs += `user_pref("network.cookie.cookieBehavior", 2);`
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "user.js"), []byte(prefs), 0o600))
	cmd := exec.Command(program, "--headless", "--no-remote", "--profile", dir, "--remote-debugging-port=0")
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir)
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	startProcess(t, cmd)
	said, listens := bufio.NewReader(stderr), regexp.MustCompile(`WebDriver BiDi listening on (ws://\S+)`)
	for {
		line, err := said.ReadString('\n')
		require.NoError(t, err, "Firefox ended before it listened")
		if m := listens.FindStringSubmatch(line); m != nil {
			go func() { _, _ = io.Copy(io.Discard, said) }()
			return newBiDi(t, m[1]+"/session")
		}
	}
}

// startProcess runs cmd until the end of the test, and everything that it starts.
func startProcess(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		for _, pid := range descendants(cmd.Process.Pid) {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill()
			}
		}
		_ = cmd.Wait()
	})
}

// descendants lists pid and what it has started.
func descendants(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		data, _ := os.ReadFile(file)
		var child, parent int
		var state string
		_, after, _ := strings.Cut(string(data), ") ")
		_, _ = fmt.Sscan(string(data), &child)
		if _, err := fmt.Sscan(after, &state, &parent); err == nil {
			children[parent] = append(children[parent], child)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// view is a tab that a test looks at.
type view struct {
	t      *testing.T
	b      browser
	handle string
}

// newView opens a tab for the test.
func newView(t *testing.T, b browser) *view {
	t.Helper()
	handle, err := b.newTab()
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := b.closeTab(handle); err != nil {
			t.Error(err)
		}
	})
	return &view{t, b, handle}
}

func (v *view) open(url string) {
	v.t.Helper()
	require.NoError(v.t, v.b.open(v.handle, url))
}

func (v *view) back() {
	v.t.Helper()
	require.NoError(v.t, v.b.back(v.handle))
}

func (v *view) reload() {
	v.t.Helper()
	require.NoError(v.t, v.b.reload(v.handle))
}

// see waits until the page's text contains want, and returns the text.
func (v *view) see(want string) (text string) {
	v.t.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(40 * time.Millisecond) {
		// While a page gives way to the next there is none to ask.
		text, err = v.text()
		if err == nil && strings.Contains(text, want) {
			return text
		}
	}
	require.NoError(v.t, err, want)
	require.Contains(v.t, text, want)
	return ""
}

func (v *view) text() (text string, err error) {
	data, err := v.b.evaluate(v.handle, `document.readyState == "complete" && document.body ? document.body.innerText : ""`)
	if err == nil {
		err = json.Unmarshal([]byte(data), &text)
	}
	return text, err
}

// click clicks on the link or button with that text.
func (v *view) click(label string) {
	v.t.Helper()
	xpath := fmt.Sprintf(`//*[self::a or self::button][normalize-space()=%q]`, label)
	require.NoError(v.t, v.b.click(v.handle, xpath), label)
}

// untick clicks on the box of a consent page's scope.
func (v *view) untick(scope string) {
	v.t.Helper()
	require.NoError(v.t, v.b.click(v.handle, fmt.Sprintf(`//input[@value=%q]`, scope)), scope)
}

// run evaluates a script on the page.
func (v *view) run(expression string) string {
	v.t.Helper()
	value, err := v.b.evaluate(v.handle, expression)
	require.NoError(v.t, err)
	return value
}

func (v *view) location() (url string) {
	v.t.Helper()
	require.NoError(v.t, json.Unmarshal([]byte(v.run("location.href")), &url))
	return url
}

var errNothing = errors.New("nothing on the page matches")
