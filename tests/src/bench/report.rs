//! Figures of a measurement, as a table for a person and as JSON for a program.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

/// Samples of one thing, in the unit the figure names.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub fn n(&self) -> usize {
        self.0.len()
    }

    /// The nearest-rank quantile; 0 of no samples.
    pub fn quantile(&self, at: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (at * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
    }

    pub fn p50(&self) -> f64 {
        self.quantile(0.5)
    }

    pub fn p95(&self) -> f64 {
        self.quantile(0.95)
    }
}

/// One line of the result.
#[derive(Debug, Clone)]
pub struct Figure {
    /// Short and stable, like `create.cold`.
    pub id: &'static str,
    /// What was measured, with its unit.
    pub what: String,
    pub value: f64,
    /// The control's value in the same unit, where there is one.
    pub control: Option<f64>,
    pub n: usize,
    pub p50: f64,
    pub p95: f64,
}

impl Figure {
    /// The median of `samples`, beside the median of a control that was measured in turns with it.
    pub fn of(
        id: &'static str,
        what: impl Into<String>,
        samples: &Samples,
        control: Option<&Samples>,
    ) -> Self {
        Self {
            id,
            what: what.into(),
            value: samples.p50(),
            control: control.map(Samples::p50),
            n: samples.n(),
            p50: samples.p50(),
            p95: samples.p95(),
        }
    }

    /// A plain count.
    pub fn count(id: &'static str, what: impl Into<String>, value: usize) -> Self {
        let value = value as f64;
        Self { id, what: what.into(), value, control: None, n: 1, p50: value, p95: value }
    }

    /// How many times the control it is.
    pub fn ratio(&self) -> Option<f64> {
        self.control.filter(|control| *control != 0.0).map(|control| self.value / control)
    }

    fn json(&self) -> Value {
        json!({
            "id": self.id, "what": self.what, "value": self.value, "control": self.control,
            "ratio": self.ratio(), "n": self.n, "p50": self.p50, "p95": self.p95,
        })
    }
}

#[derive(Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
}

impl Report {
    pub fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// The table, headed by how busy the machine was.
    pub fn print(&self) {
        println!("\nload average {}", load_average());
        println!(
            "{:<28} {:>12} {:>12} {:>7} {:>5} {:>12}  what",
            "id", "p50", "control", "ratio", "n", "p95"
        );
        for figure in &self.figures {
            let shown = |value: Option<f64>| value.map(|value| format!("{value:.3}")).unwrap_or_default();
            println!(
                "{:<28} {:>12.3} {:>12} {:>7} {:>5} {:>12.3}  {}",
                figure.id,
                figure.p50,
                shown(figure.control),
                shown(figure.ratio()),
                figure.n,
                figure.p95,
                figure.what
            );
        }
    }

    pub fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let list: Vec<Value> = self.figures.iter().map(Figure::json).collect();
        let text = serde_json::to_string_pretty(&list)?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let hundred = samples(&hundred);
        assert_eq!((hundred.p50(), hundred.p95(), hundred.quantile(1.0)), (50.0, 95.0, 100.0));
        assert_eq!(samples(&[3.0]).p95(), 3.0);
        assert_eq!(Samples::default().p50(), 0.0);
    }

    #[test]
    fn a_figure_is_a_ratio_where_there_is_a_control() {
        let figure = Figure::of("a.b", "ms", &samples(&[2.0, 4.0, 6.0]), Some(&samples(&[2.0])));
        assert_eq!((figure.value, figure.ratio()), (4.0, Some(2.0)));
        let object = figure.json();
        for key in ["id", "what", "value", "control", "ratio", "n", "p50", "p95"] {
            assert!(object.get(key).is_some(), "{key}");
        }
        assert_eq!(Figure::count("lost", "rows", 0).ratio(), None);
    }
}
