//! Makes a container's image present, or says why it is not.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use orlop_cri::v1 as cri;

use super::model::{Failure, Step, Waiting};
use super::operations;
use super::worker::Worker;
use crate::events::Kind;
use crate::images::{self, Policy};

/// What came of it.
pub(crate) enum Presence {
    /// The reference to create the container with, and what the runtime knows of the image.
    Here(String, Box<cri::Image>),
    /// Being pulled.
    Coming,
    /// Not to be had now.
    Failed,
}

/// A failed pull shows as an error first, as a back-off from here on.
const SHOW_ERROR: SignedDuration = SignedDuration::from_secs(1);

impl Worker {
    pub(crate) async fn ensure_image(
        &mut self,
        pod: &std::sync::Arc<core::Pod>,
        container: &core::Container,
    ) -> Presence {
        let name = &container.name;
        let given = container.image.clone().unwrap_or_default();
        let image = match images::normalize(&given) {
            Ok(image) => image,
            Err(problem) => {
                self.kubelet.events.container(pod, name, Kind::Warning, "InspectFailed", problem.clone());
                self.fail_start(pod, name, "InvalidImageName", problem);
                return Presence::Failed;
            }
        };
        let policy = images::policy(container, &image);
        let pulled = self.pulled.remove(name);
        let asked = pulled.clone().unwrap_or_else(|| image.clone());
        let spec = cri::ImageSpec { image: asked, ..Default::default() };
        let known = match self
            .kubelet
            .runtime
            .image_status(cri::ImageStatusRequest { image: Some(spec), verbose: false })
            .await
        {
            Ok(answer) => answer.image,
            Err(error) => {
                let problem = format!("Failed to inspect image {image:?}: {error}");
                self.kubelet.events.container(pod, name, Kind::Warning, "InspectFailed", problem.clone());
                self.fail_start(pod, name, "ImageInspectError", problem);
                return Presence::Failed;
            }
        };
        match (known, policy) {
            (Some(known), _) if pulled.is_some() => Presence::Here(known.id.clone(), Box::new(known)),
            (Some(known), Policy::IfNotPresent | Policy::Never) => {
                let message = format!(
                    "Container image {given:?} already present on machine and can be accessed by the pod"
                );
                self.kubelet.events.container(pod, name, Kind::Normal, "Pulled", message);
                Presence::Here(known.id.clone(), Box::new(known))
            }
            (None, Policy::Never) => {
                let problem = format!("Container image {given:?} is not present with pull policy of Never");
                self.kubelet.events.container(pod, name, Kind::Warning, "ErrImageNeverPull", problem.clone());
                self.fail_start(pod, name, "ErrImageNeverPull", problem);
                Presence::Failed
            }
            (_, Policy::Always | Policy::IfNotPresent) => {
                self.begin_pull(pod, name, image);
                Presence::Coming
            }
        }
    }

    fn begin_pull(&mut self, pod: &std::sync::Arc<core::Pod>, name: &str, image: String) {
        self.memory.pulling.insert(name.to_owned());
        let sandbox = self.sandbox_config.clone().unwrap_or_default();
        self.operations.spawn(operations::pull(
            self.kubelet.clone(),
            pod.clone(),
            name.to_owned(),
            image,
            sandbox,
        ));
    }

    pub(crate) fn pull_ended(&mut self, name: &str, result: Result<String, String>) {
        self.memory.pulling.remove(name);
        match result {
            Ok(image_ref) => {
                self.memory.failures.remove(name);
                self.pull_steps.remove(name);
                self.pulled.insert(name.to_owned(), image_ref);
            }
            Err(error) => {
                let now = Timestamp::now();
                let step = Step::after(self.pull_steps.get(name).copied(), now);
                self.pull_steps.insert(name.to_owned(), step);
                if let Some(pod) = &self.pod {
                    self.kubelet.events.container(pod, name, Kind::Warning, "Failed", "Error: ErrImagePull");
                }
                let retry_at = now + SignedDuration::try_from(step.pause).unwrap_or(SignedDuration::MAX);
                let waiting = Waiting { reason: "ErrImagePull".to_owned(), message: error };
                self.memory.failures.insert(name.to_owned(), Failure { waiting, retry_at, step });
            }
        }
    }

    /// Turns pull errors that have been shown into back-offs; the time of the next such turn.
    pub(crate) fn show_back_offs(&mut self, now: Timestamp) -> Option<Timestamp> {
        let mut next: Option<Timestamp> = None;
        let pod = self.pod.clone()?;
        for (name, failure) in &mut self.memory.failures {
            if failure.waiting.reason != "ErrImagePull" {
                continue;
            }
            let turn = failure.step.updated + SHOW_ERROR;
            if now < turn {
                next = Some(next.map_or(turn, |earlier| earlier.min(turn)));
                continue;
            }
            let image = super::model::container(&pod, name)
                .and_then(|(_, spec)| spec.image.clone())
                .unwrap_or_default();
            let message = format!("Back-off pulling image {image:?}");
            self.kubelet.events.container(&pod, name, Kind::Normal, "BackOff", message.clone());
            self.kubelet.events.container(&pod, name, Kind::Warning, "Failed", "Error: ImagePullBackOff");
            failure.waiting = Waiting {
                reason: "ImagePullBackOff".to_owned(),
                message: format!("{message}: ErrImagePull: {}", failure.waiting.message),
            };
        }
        next
    }
}
