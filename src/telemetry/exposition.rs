//! Prometheus text format, version 0.0.4, encoded by the `prometheus` crate from values that are kept elsewhere.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use super::counters::{self, BUCKETS_SECONDS};

/// Media type of the exposition.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Collector of the exposed metrics.
#[derive(Debug, Default)]
pub struct Exposition(Vec<MetricFamily>);

/// Label name and value.
pub type Label<'a> = (&'a str, &'a str);

impl Exposition {
    /// Adds a counter; the name ends in `_total`.
    pub fn counter(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.family(name, help, MetricType::COUNTER)
    }

    /// Adds a gauge.
    pub fn gauge(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.family(name, help, MetricType::GAUGE)
    }

    /// Adds a histogram of durations; the name ends in `_seconds`.
    pub fn histogram(&mut self, name: &str, help: &str) -> Samples<'_> {
        self.family(name, help, MetricType::HISTOGRAM)
    }

    /// Encodes the text. Families without samples are omitted.
    pub fn encode(mut self) -> Vec<u8> {
        self.0.retain(|family| !family.get_metric().is_empty());
        let mut text = Vec::new();
        // Fails only if a family has no name or no samples.
        TextEncoder::new().encode(&self.0, &mut text).expect("all families have names and samples");
        text
    }

    fn family(&mut self, name: &str, help: &str, kind: MetricType) -> Samples<'_> {
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        self.0.push(family);
        Samples { family: self.0.last_mut().expect("just pushed"), kind }
    }
}

/// Samples of one metric family.
pub struct Samples<'a> {
    family: &'a mut MetricFamily,
    kind: MetricType,
}

impl Samples<'_> {
    /// Adds a sample with a value.
    pub fn with(self, labels: &[Label<'_>], value: f64) -> Self {
        let mut metric = Metric::from_label(pairs(labels));
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.push(metric)
    }

    /// Adds a sample with a count.
    #[expect(clippy::cast_precision_loss, reason = "the format has floating point numbers only")]
    pub fn with_count(self, labels: &[Label<'_>], count: u64) -> Self {
        self.with(labels, count as f64)
    }

    /// Adds a sample with a histogram.
    pub fn with_durations(self, labels: &[Label<'_>], durations: &counters::Histogram) -> Self {
        let mut cumulative = 0;
        let buckets = BUCKETS_SECONDS.iter().zip(&durations.counts).map(|(&bound, count)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(durations.count());
        histogram.set_sample_sum(durations.seconds);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_histogram(histogram);
        self.push(metric)
    }

    fn push(self, metric: Metric) -> Self {
        self.family.mut_metric().push(metric);
        self
    }
}

fn pairs(labels: &[Label<'_>]) -> Vec<LabelPair> {
    let pair = |(name, value): &Label<'_>| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::counters::{Durations, Histogram};
    use super::*;

    #[test]
    fn text_format() {
        let mut exposition = Exposition::default();
        exposition.counter("a_total", "All a's.").with_count(&[("kind", "x\"\n")], 3).with(&[], 0.5);
        exposition.gauge("nothing", "Omitted.");
        let (durations, mut histogram) = (Durations::default(), Histogram::default());
        durations.add(Duration::from_millis(700));
        histogram.include(&durations);
        exposition.histogram("b_seconds", "How long.").with_durations(&[], &histogram);
        let text = String::from_utf8(exposition.encode()).expect("text");
        let expected = "# HELP a_total All a's.\n# TYPE a_total counter\na_total{kind=\"x\\\"\\n\"} 3\na_total 0.5\n\
            # HELP b_seconds How long.\n# TYPE b_seconds histogram\nb_seconds_bucket{le=\"0.0005\"} 0\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("b_seconds_bucket{le=\"0.5\"} 0\nb_seconds_bucket{le=\"1\"} 1\n"), "{text}");
        assert!(text.ends_with("le=\"+Inf\"} 1\nb_seconds_sum 0.7\nb_seconds_count 1\n"), "{text}");
    }
}
