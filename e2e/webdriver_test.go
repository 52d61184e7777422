package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// webDriver speaks WebDriver (https://www.w3.org/TR/webdriver2/).
type webDriver struct {
	session string // the URL
	client  *http.Client
	first   string // the tab that the browser began with, from which others are opened
	tab     string // that commands go to
}

// newWebDriver begins a session with the driver at base, and ends it with the test.
func newWebDriver(t *testing.T, base string, capabilities map[string]any) *webDriver {
	t.Helper()
	w := &webDriver{session: base, client: &http.Client{Timeout: time.Minute}}
	require.Eventually(t, func() bool { return w.do("GET", "/status", nil, nil) == nil }, 20*time.Second, 20*time.Millisecond)
	capabilities["acceptInsecureCerts"] = true
	capabilities["pageLoadStrategy"] = "none"
	var begun struct {
		SessionID string
	}
	require.NoError(t, w.do("POST", "/session", map[string]any{
		"capabilities": map[string]any{"alwaysMatch": capabilities},
	}, &begun))
	w.session += "/session/" + begun.SessionID
	t.Cleanup(func() {
		if err := w.do("DELETE", "", nil, nil); err != nil {
			t.Error(err)
		}
		w.client.CloseIdleConnections()
	})
	require.NoError(t, w.do("GET", "/window", nil, &w.first))
	return w
}

// do sends a command and reads the value of its answer.
func (w *webDriver) do(method, path string, params, value any) error {
	if params == nil && method == http.MethodPost {
		params = struct{}{}
	}
	body, err := json.Marshal(params)
	if err != nil {
		return err
	}
	r, err := http.NewRequest(method, w.session+path, nil)
	if err != nil {
		return err
	}
	if method == http.MethodPost {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		r.Header.Set("Content-Type", "application/json; charset=utf-8")
	}
	resp, err := w.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct{ Value json.RawMessage }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %.300s", method, path, answer.Value)
	}
	if value == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, value)
}

// in sends a command to a tab.
func (w *webDriver) in(handle, method, path string, params, value any) error {
	if w.tab != handle {
		if err := w.do("POST", "/window", map[string]string{"handle": handle}, nil); err != nil {
			return err
		}
		w.tab = handle
	}
	return w.do(method, path, params, value)
}

func (w *webDriver) newTab() (string, error) {
	var opened struct{ Handle string }
	err := w.in(w.first, "POST", "/window/new", map[string]string{"type": "tab"}, &opened)
	return opened.Handle, err
}

func (w *webDriver) closeTab(handle string) error {
	err := w.in(handle, "DELETE", "/window", nil, nil)
	w.tab = "" // the next command chooses
	return err
}

func (w *webDriver) open(handle, url string) error {
	return w.in(handle, "POST", "/url", map[string]string{"url": url}, nil)
}

func (w *webDriver) back(handle string) error { return w.in(handle, "POST", "/back", nil, nil) }

func (w *webDriver) reload(handle string) error { return w.in(handle, "POST", "/refresh", nil, nil) }

func (w *webDriver) click(handle, xpath string) error {
	var found []map[string]string
	if err := w.in(handle, "POST", "/elements", map[string]string{"using": "xpath", "value": xpath}, &found); err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("%w %s", errNothing, xpath)
	}
	for _, element := range found[0] {
		return w.do("POST", "/element/"+element+"/click", nil, nil)
	}
	return nil
}

func (w *webDriver) evaluate(handle, expression string) (value string, err error) {
	err = w.in(handle, "POST", "/execute/sync", map[string]any{
		"script": "return Promise.resolve(" + expression + ").then(v => JSON.stringify(v ?? null))", "args": []any{},
	}, &value)
	return value, err
}
