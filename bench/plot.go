package main

import (
	"bytes"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
)

var blue = color.RGBA{0x0b, 0x5c, 0xad, 0xff}

// plots writes the page's pictures into the folder.
func plots(r results, folder string) error {
	var overhead []bar
	for _, s := range []struct {
		name string
		of   float64
	}{
		{"memory", r.Default[1].Ratio}, {"memory, sealed", r.Default[2].Ratio}, {"IdleTimeout", r.Idle[1].Ratio},
		{"all cores", r.Parallel[1].Ratio}, {"Redis", r.Redis[1].Sample.Ratio}, {"PostgreSQL", r.Postgres[1].Sample.Ratio},
	} {
		overhead = append(overhead, bar{s.name, s.of, fmt.Sprintf("%.2f", s.of)})
	}
	if err := bars(filepath.Join(folder, "overhead.svg"), "A request with a live token; scs alone is 1", overhead); err != nil {
		return err
	}
	var storm []bar
	for _, s := range r.AtOnce {
		label := fmt.Sprintf("%d, %d failed", s.TokenRequests, s.Failed)
		if s.Lost {
			label += ", connection lost"
		}
		storm = append(storm, bar{s.Name, float64(s.TokenRequests), label})
	}
	if err := bars(filepath.Join(folder, "storm.svg"), "1,000 requests at once meet an expired token: token requests", storm); err != nil {
		return err
	}
	return lines(filepath.Join(folder, "memory.svg"), r.Memory)
}

type bar struct {
	name  string
	value float64
	label string
}

// bars draws a bar for each value.
func bars(path, title string, values []bar) error {
	var heights plotter.Values
	var names []string
	var labels plotter.XYLabels
	for i, b := range values {
		heights = append(heights, b.value)
		names = append(names, strings.ReplaceAll(b.name, "*", ""))
		labels.XYs = append(labels.XYs, plotter.XY{X: float64(i), Y: b.value})
		labels.Labels = append(labels.Labels, b.label)
	}
	chart, err := plotter.NewBarChart(heights, vg.Points(30))
	if err != nil {
		return err
	}
	chart.Color, chart.LineStyle.Width = blue, 0
	above, err := plotter.NewLabels(labels)
	if err != nil {
		return err
	}
	above.Offset.Y = vg.Points(4)
	for i := range above.TextStyle {
		above.TextStyle[i].XAlign = text.XCenter
	}
	p := newPlot(title)
	p.Add(plotter.NewGrid(), chart, above)
	p.NominalX(names...)
	p.Y.Min, p.Y.Max = 0, 1.15*slices.Max(heights)
	p.X.Min, p.X.Max = -0.7, float64(len(values))-0.3
	return save(p, path)
}

// lines draws memory by the number of tokens.
func lines(path string, rows []memoryRow) error {
	p := newPlot("Heap by live sessions")
	p.X.Label.Text, p.Y.Label.Text = "sessions", "MiB"
	p.X.Max = 1.05 * float64(rows[len(rows)-1].Sessions)
	p.X.Tick.Marker = plot.TickerFunc(func(min, max float64) []plot.Tick {
		ticks := plot.DefaultTicks{}.Ticks(min, max)
		for i, t := range ticks {
			if t.Label != "" {
				ticks[i].Label = thousands(int(t.Value))
			}
		}
		return ticks
	})
	p.Add(plotter.NewGrid())
	for _, l := range []struct {
		name  string
		color color.Color
		each  func(memoryRow) float64
	}{
		{"ganbauth", blue, func(r memoryRow) float64 { return r.Connected }},
		{"scs alone", color.Gray{0x60}, func(r memoryRow) float64 { return r.Alone }},
	} {
		points := plotter.XYs{{}}
		for _, r := range rows {
			points = append(points, plotter.XY{X: float64(r.Sessions), Y: l.each(r) * float64(r.Sessions) / (1 << 20)})
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color = l.color, l.color
		p.Add(line, dots)
		p.Legend.Add(l.name, line)
	}
	p.Legend.Top, p.Legend.Left = true, true
	return save(p, path)
}

func newPlot(title string) *plot.Plot {
	p := plot.New()
	p.Title.Text, p.Title.Padding = title, vg.Points(8)
	return p
}

func init() {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	plotter.DefaultFont = plot.DefaultFont
}

// save names the fonts that have the same widths: few who see the page have the one that
// was measured.
func save(p *plot.Plot, path string) error {
	w, err := p.WriterTo(8*vg.Inch, 3.5*vg.Inch, "svg")
	if err != nil {
		return err
	}
	var svg bytes.Buffer
	if _, err := w.WriteTo(&svg); err != nil {
		return err
	}
	text := strings.ReplaceAll(svg.String(), "font-family:Liberation Sans", "font-family:Liberation Sans,Arial,Helvetica,sans-serif")
	return os.WriteFile(path, []byte(text), 0o644)
}
